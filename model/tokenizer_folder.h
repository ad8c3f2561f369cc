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
};

// Errors: kNotFound (no tokenizer's files), kInvalidArgument.
absl::StatusOr<TokenizerFolder> ReadTokenizerFolder(const std::string& folder);

}  // namespace retort
