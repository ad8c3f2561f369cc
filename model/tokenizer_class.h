// Which of transformers' tokenizer classes a folder gets, and what that class makes of a vocabulary.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "absl/strings/string_view.h"

namespace retort {

enum class TokenizerClass {
  kAsFile,  // TokenizersBackend: tokenizer.json as it stands
  kLlama,
  kQwen2,
  kGpt2,
};

// `named`: tokenizer_class of tokenizer_config.json, else of config.json; `model_type`: config.json's. Empty: not
// given.
TokenizerClass ChooseTokenizerClass(absl::string_view named, absl::string_view model_type);

// What a saved tokenizer_config.json says for tokenizer_class, beside no config.json, so that the same class is chosen.
std::string SavedTokenizerClass(TokenizerClass chosen, absl::string_view named, absl::string_view model_type);

// The special tokens that the class takes where none are given.
nlohmann::json DefaultSpecialTokens(TokenizerClass chosen);

// The tokenizer.json of the class around `model`'s vocab and merges. `config`: tokenizer_config.json.
nlohmann::json RebuildTokenizer(TokenizerClass chosen, nlohmann::json vocab, nlohmann::json merges,
                                const nlohmann::json& config);

}  // namespace retort
