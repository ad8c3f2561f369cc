// The C ABI of the Rust crate in this folder.
//
// Functions that can fail return a RetortFfiCode and, when it is not kRetortFfiOk, write a message to `error`, to be
// freed with retort_bytes_free. Texts are UTF-8 and may hold NUL. Objects may be used by several threads at once.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

enum RetortFfiCode : int32_t {
  kRetortFfiOk = 0,
  kRetortFfiInvalid = 1,
  kRetortFfiExhausted = 2,  // a template went over its limits of memory, time, instructions or output
  kRetortFfiPanicked = 3,
};

struct RetortSlice {
  const uint8_t* data;
  size_t size;
};
struct RetortBytes {
  uint8_t* data;
  size_t size;
};
struct RetortIds {
  uint32_t* data;
  size_t size;
};

struct RetortTokenizer;
struct RetortTemplate;

// `json`: tokenizer.json. `added`: a JSON list of tokens {"content", "special", ...} to add where they are missing.
// `split_special_tokens`: texts that spell a special token are not taken for it.
int32_t retort_tokenizer_new(RetortSlice json, RetortSlice added, bool split_special_tokens,
                             RetortTokenizer** tokenizer, RetortBytes* error);
void retort_tokenizer_free(RetortTokenizer* tokenizer);
// Adds tokens as transformers' add_tokens, one after the other, before others use the tokenizer. `ids`: of each of
// them; `known`: 1 for those that had an id before.
int32_t retort_tokenizer_add(RetortTokenizer* tokenizer, RetortSlice tokens, RetortIds* ids, RetortIds* known,
                             RetortBytes* error);
// The ids that have a token, ascending.
int32_t retort_tokenizer_all_ids(const RetortTokenizer* tokenizer, RetortIds* ids, RetortBytes* error);
// tokenizer.json.
int32_t retort_tokenizer_to_json(const RetortTokenizer* tokenizer, RetortBytes* json, RetortBytes* error);
// Writes one list for each text; on failure none.
int32_t retort_tokenizer_encode(const RetortTokenizer* tokenizer, const RetortSlice* texts, size_t count,
                                bool add_special_tokens, RetortIds* ids, RetortBytes* error);
// `spans`: `count` pairs of characters, first and behind the last. `mask`: 1 for each token of one, else 0.
int32_t retort_tokenizer_encode_marked(const RetortTokenizer* tokenizer, RetortSlice text, bool add_special_tokens,
                                       const uint32_t* spans, size_t count, RetortIds* ids, RetortIds* mask,
                                       RetortBytes* error);
int32_t retort_tokenizer_decode(const RetortTokenizer* tokenizer, const uint32_t* ids, size_t count,
                                bool skip_special_tokens, RetortBytes* text, RetortBytes* error);
int64_t retort_tokenizer_token_to_id(const RetortTokenizer* tokenizer, RetortSlice token);
size_t retort_tokenizer_vocab_size(const RetortTokenizer* tokenizer);

// `now`, in seconds since 1970: what strftime_now tells, in UTC.
int32_t retort_template_new(RetortSlice source, int64_t now, RetortTemplate** compiled, RetortBytes* error);
void retort_template_free(RetortTemplate* compiled);
// `messages`: a JSON list; `variables`: a JSON object of the template's other variables; `continued`: the last
// message's field that the text ends in, empty for none. `spans`: pairs of characters that {% generation %} blocks
// wrote.
int32_t retort_template_render(const RetortTemplate* compiled, RetortSlice messages, RetortSlice variables,
                               RetortSlice continued, RetortBytes* text, RetortIds* spans, RetortBytes* error);

void retort_bytes_free(RetortBytes bytes);
void retort_ids_free(RetortIds ids);

}  // extern "C"
