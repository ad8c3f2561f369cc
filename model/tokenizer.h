// Text to token ids and back, and chat templates, as transformers' AutoTokenizer gives them: Hugging Face tokenizers
// and a Jinja of our own (model/tokenizer_ffi) behind a C ABI.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace retort {

// One turn of a conversation.
struct ChatMessage {
  std::string role;
  std::string content;
};

struct ChatOptions {
  bool add_generation_prompt = false;
  // A template, or the name of one of the folder's; empty: the folder's own.
  std::string chat_template;
  // A JSON object of the template's other variables (tools, documents, enable_thinking, ...); they win over the special
  // tokens. continue_final_message (true, or a field's name) ends the text where the last message's field ends.
  // Empty: none.
  std::string variables_json;
  // Where the template has no {% generation %} blocks and TRL knows the same with them, that one is taken.
  bool for_training = false;
};

// Characters [first, last) of a text; not bytes.
struct CharacterSpan {
  uint32_t first = 0;
  uint32_t last = 0;
};

struct RenderedChat {
  std::string text;
  std::vector<CharacterSpan> generated;  // what {% generation %} blocks wrote
  bool has_generation_blocks = false;    // in the template, whether or not one ran
};

struct MarkedTokens {
  std::vector<int32_t> ids;
  std::vector<bool> marked;  // as long as ids
};

struct TokenizerOptions {
  absl::Time now = absl::Now();
  // Added to what the folder has, as transformers' add_tokens does: those that it lacks get the ids after its highest.
  std::vector<std::string> add_tokens;
  std::vector<std::string> add_special_tokens;
};

// What add_tokens and add_special_tokens came to.
struct TokenAdditions {
  struct Token {
    std::string text;
    int32_t id = 0;
    bool known = false;  // had this id before
  };
  std::vector<Token> tokens;        // add_tokens, then add_special_tokens
  std::vector<int32_t> ids_before;  // of the folder's own tokens, ascending
  int64_t rows = 0;                 // that embeddings need for all ids

  bool any_new() const;
};

// Texts longer than this are refused: a tokenizer needs a hundred times the size of one long word.
inline constexpr size_t kMaxTextBytes = size_t{8} << 20;

// Thread-safe.
class Tokenizer {
 public:
  // Reads tokenizer.json (or vocab.json and merges.txt), tokenizer_config.json, special_tokens_map.json,
  // added_tokens.json, chat_template.jinja, additional_chat_templates/ and config.json's model_type of a HF folder, and
  // takes from them what AutoTokenizer takes (model/tokenizer_folder.h); weights are not needed. A folder without a
  // chat template is fine until one is asked for. `now` is what templates take for the present (strftime_now, in UTC):
  // a job gives the same to all of its processes, so that their prompts agree. Errors: kNotFound, kInvalidArgument.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& folder, absl::Time now = absl::Now());
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& folder, const TokenizerOptions& options);
  virtual ~Tokenizer() = default;

  virtual absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, bool add_special_tokens) const = 0;
  // One list for each text; Load's tokenizer uses every core.
  virtual absl::StatusOr<std::vector<std::vector<int32_t>>> EncodeBatch(const std::vector<std::string>& texts,
                                                                        bool add_special_tokens) const;
  // Ids that the vocabulary has no token for give no text. Errors: kInvalidArgument (a negative id).
  virtual absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const = 0;
  // As transformers' apply_chat_template(tokenize=False): byte for byte. `messages_json` is a JSON list of messages as
  // the user wrote them. Errors: kInvalidArgument (the template raises: its message), kFailedPrecondition (no
  // template), kResourceExhausted (the template does not end or writes too much).
  virtual absl::StatusOr<std::string> ApplyChatTemplate(absl::string_view messages_json,
                                                        bool add_generation_prompt) const = 0;
  // apply_chat_template with all that it takes. Errors: as above, and kInvalidArgument for variables that cannot be
  // (continue_final_message with add_generation_prompt, tools that are no list of objects, ...). The base class's knows
  // no options and fails with kUnimplemented where one is set.
  virtual absl::StatusOr<RenderedChat> RenderChat(absl::string_view messages_json, const ChatOptions& options) const;
  // Marks the tokens of `spans` as transformers' return_assistant_tokens_mask does. The base class's fails with
  // kUnimplemented.
  virtual absl::StatusOr<MarkedTokens> EncodeMarked(absl::string_view text, bool add_special_tokens,
                                                    const std::vector<CharacterSpan>& spans) const;

  virtual int64_t vocab_size() const = 0;  // with added tokens
  // The rows of the model's embedding where config.json beside the tokenizer says so and they are more: models'
  // vocabularies are often padded.
  virtual int64_t model_vocab_size() const { return vocab_size(); }
  // -1 when the tokenizer has none of that name.
  virtual int32_t TokenToId(absl::string_view token) const = 0;
  virtual int32_t eos_token_id() const = 0;  // tokenizer_config.json's eos_token; -1: none
  virtual std::string eos_token() const { return ""; }

  // Empty where nothing was asked for.
  virtual const TokenAdditions& additions() const;
  // The files of a folder that AutoTokenizer makes this tokenizer of, by name: for an adapter that needs its own. The
  // base class's fails with kUnimplemented.
  virtual absl::StatusOr<std::map<std::string, std::string>> Files() const;
};

std::string MessagesToJson(const std::vector<ChatMessage>& messages);

}  // namespace retort
