// How byte-level BPE tokenizers cut text before they merge: llama.cpp has a name for each way (tokenizer.ggml.pre),
// Hugging Face's tokenizer.json spells it out.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace retort::gguf {

struct PreTokenizer {
  const char* name;    // as it is written to GGUF files
  bool ignore_merges;  // a piece that is a token as a whole is that token, whatever merges say
  bool adds_bos;       // llama.cpp's default where the file says nothing
};

// Null: not known.
const PreTokenizer* FindPreTokenizer(absl::string_view name);
// All names that FindPreTokenizer takes, for messages.
std::string PreTokenizerNames();

// The "pre_tokenizer" and "normalizer" of tokenizer.json.
nlohmann::json PreTokenizerJson(const PreTokenizer& pre);
nlohmann::json NormalizerJson(const PreTokenizer& pre);

// The one that a tokenizer.json has. Null: none that llama.cpp knows.
const PreTokenizer* RecognisePreTokenizer(const nlohmann::json& tokenizer);

}  // namespace retort::gguf
