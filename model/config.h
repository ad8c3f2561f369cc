// What a Hugging Face folder's config.json and generation_config.json say about a decoder-only model.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace retort {

// Llama 3's frequency-dependent scaling of rotary positions (transformers,
// modeling_rope_utils._compute_llama3_parameters).
struct Llama3RopeScaling {
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_position_embeddings = 8192;
};

struct ModelConfig {
  std::string model_type;  // "llama"
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  std::optional<Llama3RopeScaling> rope_scaling;
  bool tie_word_embeddings = false;
  bool attention_bias = false;
  bool mlp_bias = false;
  c10::ScalarType dtype = c10::ScalarType::Float;  // of the stored weights, as the config says
  std::vector<int32_t> eos_token_ids;              // generation_config.json's, else config.json's
  std::optional<int32_t> bos_token_id;
  std::optional<int32_t> pad_token_id;
};

// Reads `folder`/config.json (old and new spellings: torch_dtype/dtype, rope_scaling/rope_parameters). Whatever changes
// the arithmetic and is not supported is refused with its key. Errors: kNotFound, kInvalidArgument, kUnimplemented.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& folder);

}  // namespace retort
