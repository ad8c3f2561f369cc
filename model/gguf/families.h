// The model families: how each is called, and where its tensors lie, in a GGUF file and in a Hugging Face folder.
//
// To add one: a row in the table of families.cc, its numbers in config_to_metadata.cc and metadata_to_config.cc.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace retort::gguf {

enum class Layout {
  kSame,
  kRotaryQ,     // rows of each query head: GGUF has the rotated pairs next to each other, HF the halves
  kRotaryK,     // the same for key heads
  kExperts,     // one stacked tensor in GGUF, one tensor for each expert in HF ("{e}" stands for its number)
  kKeyOfKvB,    // the keys' rows of kv_b_proj, transposed: [heads, kv_lora_rank, qk_nope_head_dim]
  kValueOfKvB,  // the values' rows of kv_b_proj: [heads, v_head_dim, kv_lora_rank]
};

// "{}" stands for the layer's number.
struct TensorRule {
  const char* gguf;
  const char* hf;
  Layout layout = Layout::kSame;
};

struct Family {
  const char* architecture;  // general.architecture
  absl::Span<const TensorRule> rules;
};

// Null: not supported.
const Family* FindFamily(absl::string_view architecture);
// By config.json's model_type.
const Family* FindFamilyOfModelType(absl::string_view model_type);
std::string SupportedArchitectures();  // for messages
std::string SupportedModelTypes();

// A pattern with its numbers filled in.
std::string Fill(absl::string_view pattern, int64_t layer, int64_t expert = -1);

struct RuleMatch {
  const TensorRule* rule = nullptr;
  int64_t layer = -1;
};
// The rule whose GGUF name this is. Nothing: the family has no such tensor.
std::optional<RuleMatch> MatchGgufName(const Family& family, absl::string_view name);

}  // namespace retort::gguf
