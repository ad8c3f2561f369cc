// What a folder's tokenizer files come to, as transformers' AutoTokenizer puts them together. Reads and decides; the
// tokenizer itself is model/tokenizer.h.
//
// transformers 5 builds a tokenizer again from the vocabulary and merges of tokenizer.json where the class it chooses
// has rules of its own (LlamaTokenizer, Qwen2Tokenizer, GPT2Tokenizer), and takes the file as it stands for all others;
// the class depends on tokenizer_config.json and on config.json's model_type. Tokens named only in
// tokenizer_config.json or special_tokens_map.json are added.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"

namespace retort {

struct TokenizerFolder {
  std::string tokenizer_json;                // for the tokenizers library
  nlohmann::json added_tokens;               // to be added to it, in this order
  nlohmann::json special_tokens;             // name -> text, as templates see them
  std::map<std::string, std::string> named;  // chat templates by name; the only or main one is "default"
  bool single_template = true;               // one template without a name: another name is then a template's text
  std::string template_source;               // where `named` came from, for messages
  bool split_special_tokens = false;
  bool clean_up_spaces = false;  // after decoding
  int64_t model_vocab_size = 0;  // config.json's; 0: it says none
  // What tokenizer_config.json says, with the class and the special tokens that it comes to; without its templates.
  nlohmann::json config;
  std::string special_tokens_map;  // the text of special_tokens_map.json; empty: there is none
};

// Errors: kNotFound (no tokenizer's files), kInvalidArgument.
absl::StatusOr<TokenizerFolder> ReadTokenizerFolder(const std::string& folder);

// Whether a folder holds a tokenizer: adapters bring theirs along where tokens were added to it.
bool HasTokenizer(const std::string& folder);
// The folder whose tokenizer goes with a model under an adapter: the adapter's where it has one, else the model's.
std::string TokenizerFolderOf(const std::string& model, const std::string& adapter);

// Whether a file of this name in a model's folder belongs to its tokenizer.
bool IsTokenizerFile(const std::string& name);
// Copies what there is of a tokenizer's files, named templates too, into an existing folder.
absl::Status CopyTokenizerFiles(const std::string& from, const std::string& to);

// The files of a tokenizer folder by their names in it, as transformers saves them. `tokenizer_json`: the tokenizer as
// it stands. Errors: kInvalidArgument (a chat template whose name cannot be a file's).
absl::StatusOr<std::map<std::string, std::string>> TokenizerFiles(const TokenizerFolder& read,
                                                                  const std::string& tokenizer_json);

}  // namespace retort
