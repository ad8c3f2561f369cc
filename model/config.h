// What a Hugging Face folder's config.json and generation_config.json say about a decoder-only model.
//
// One description serves every family: a family's reader (architecture/) fills it, training and generation run from it.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace retort {

enum class RopeType { kDefault, kLinear, kLlama3, kYarn, kLongrope };

// Rotary positions (Su et al. 2021, arXiv:2104.09864) and their scalings, as transformers' modeling_rope_utils computes
// them: linear; llama3 (by wavelength); YaRN (Peng et al. 2023, arXiv:2309.00071); LongRoPE (Ding et al. 2024,
// arXiv:2402.13753), whose factors depend on whether the whole sequence is longer than the original context.
struct RopeConfig {
  RopeType type = RopeType::kDefault;
  double theta = 10000.0;
  int64_t dim = 0;           // dimensions of a head that are rotated, even; the rest pass through
  bool interleaved = false;  // pairs (2i, 2i + 1) instead of (i, i + dim / 2)
  double factor = 1.0;       // linear, llama3, yarn
  double low_freq_factor = 1.0, high_freq_factor = 4.0;  // llama3
  int64_t original_max_position_embeddings = 0;          // llama3, yarn, longrope
  double beta_fast = 32.0, beta_slow = 1.0;              // yarn
  bool truncate = true;                                  // yarn
  double attention_factor = 1.0;                         // cos and sin are multiplied by it
  std::vector<double> short_factor, long_factor;         // longrope: [dim / 2]

  // Whether a sequence of `tokens` is rotated by the long factors.
  bool UsesLongFactors(int64_t tokens) const {
    return type == RopeType::kLongrope && tokens > original_max_position_embeddings;
  }
};

// Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).
struct MlaConfig {
  int64_t q_lora_rank = 0;  // 0: queries come straight from the hidden state
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  double norm_eps = 1e-6;  // of the norms of the latents
};

// Mixture of experts with shared ones (DeepSeek-V2 section 2.2; DeepSeek-V3, arXiv:2412.19437, section 2.1.2).
struct MoeConfig {
  enum class Scoring { kSoftmax, kSigmoid };
  enum class GroupScore { kMax, kTopTwoSum };
  int64_t num_experts = 0;
  int64_t experts_per_token = 0;
  int64_t intermediate_size = 0;         // of one expert
  int64_t shared_intermediate_size = 0;  // of all shared experts together
  int64_t first_dense_layers = 0;
  Scoring scoring = Scoring::kSoftmax;
  bool correction_bias = false;  // e_score_correction_bias: decides who is chosen, not the weight
  int64_t groups = 1;            // only experts of the best `top_groups` may be chosen
  int64_t top_groups = 1;
  GroupScore group_score = GroupScore::kMax;
  bool normalize = false;  // weights of the chosen sum to 1
  double routed_scaling_factor = 1.0;
};

// One rank's part of a model that several share (parallel/shard.h).
struct TensorShard {
  int rank = 0;
  int size = 1;
  int64_t vocab_first = 0, vocab_count = 0;    // rows of the embedding and of the head
  int64_t expert_first = 0, expert_count = 0;  // routed experts
};

struct ModelConfig {
  std::string model_type;  // a family's: "llama", "qwen2", ...
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;  // of queries and keys
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  RopeConfig rope;
  double attention_scale = 0.0;         // what scores are multiplied by
  std::vector<int64_t> sliding_window;  // by layer: the last tokens that a token sees, itself included; 0: all
  std::optional<MlaConfig> mla;         // instead of q, k and v projections
  std::optional<TensorShard> shard;     // then the sizes above are this rank's
  std::optional<MoeConfig> moe;         // instead of the MLP from layer first_dense_layers on
  bool fused_projections = false;       // qkv_proj and gate_up_proj in one tensor each
  bool qk_norm = false;                 // RMSNorm over each head's queries and keys
  bool qkv_bias = false;                // of q, k, v; with latent attention of the projections down to the latents
  bool o_bias = false;
  bool mlp_bias = false;
  bool tie_word_embeddings = false;
  std::string activation_dropout;  // a key of dropout that training would have to apply; empty: none
  int64_t mtp_layers = 0;          // multi-token prediction layers that the files may hold after the others
  bool block_fp8 = false;          // matrices in float8 with a scale for each 128 x 128 block
  bool bitsandbytes = false;       // linear modules may be stored in 4 or 8 bits, as bitsandbytes keeps them
  c10::ScalarType dtype = c10::ScalarType::Float;  // of the stored weights, as the config says
  std::vector<int32_t> eos_token_ids;              // generation_config.json's where there is one, else config.json's
  std::optional<int32_t> bos_token_id;
  std::optional<int32_t> pad_token_id;

  int64_t window(int64_t layer) const {
    return sliding_window.empty() ? 0 : sliding_window[static_cast<size_t>(layer)];
  }
  int64_t vocab_rows() const { return shard.has_value() ? shard->vocab_count : vocab_size; }
  bool is_moe(int64_t layer) const { return moe.has_value() && layer >= moe->first_dense_layers; }
  int64_t value_head_dim() const { return mla.has_value() ? mla->v_head_dim : head_dim; }
  // The longest sequence that its positions are made for: max_position_embeddings, times the factor where a scaling is
  // told by a factor beside the original length.
  int64_t context_length() const;
};

// The scale of a config that says nothing else, 1 / sqrt(head_dim), and rope over whole heads: for configs that are
// made in code.
void FillDerived(ModelConfig& config);

// Reads `folder`/config.json (old and new spellings: torch_dtype/dtype, rope_scaling/rope_parameters). Whatever changes
// the arithmetic and is not supported is refused with its key. Errors: kNotFound, kInvalidArgument, kUnimplemented.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& folder);

// The same from the two files' contents; `generation` may be null. `folder` names the source in errors.
absl::StatusOr<ModelConfig> ParseModelConfig(const nlohmann::json& config, const nlohmann::json& generation,
                                             const std::string& folder);

}  // namespace retort
