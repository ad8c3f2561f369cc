// What DeepSeek-V2 and V3 share: latent attention and the mixture of experts.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "model/architecture/family.h"

namespace retort {

void ReadDeepseekAttention(ConfigReader& reader, ModelConfig& config) {
  config.num_attention_heads = reader.Integer("num_attention_heads", {}, 1, kMaxHeads);
  config.num_key_value_heads = reader.Integer("num_key_value_heads", config.num_attention_heads, 1, kMaxHeads);
  if (config.num_key_value_heads != config.num_attention_heads) {
    reader.Unsupported("num_key_value_heads", config.num_key_value_heads);
  }
  MlaConfig mla;
  mla.q_lora_rank = reader.IsNull("q_lora_rank") ? 0 : reader.Integer("q_lora_rank", 1536, 0, kMaxDimension);
  mla.kv_lora_rank = reader.Integer("kv_lora_rank", 512, 1, kMaxDimension);
  mla.qk_nope_head_dim = reader.Integer("qk_nope_head_dim", 128, 1, kMaxHeads);
  mla.qk_rope_head_dim = reader.Integer("qk_rope_head_dim", 64, 2, kMaxHeads);
  mla.v_head_dim = reader.Integer("v_head_dim", 128, 1, kMaxHeads);
  config.mla = mla;
  config.head_dim = mla.qk_nope_head_dim + mla.qk_rope_head_dim;
  ReadRope(reader, {.head_dim = mla.qk_rope_head_dim}, config);
  config.attention_scale = 1.0 / std::sqrt(static_cast<double>(config.head_dim));
  // A scaled rope also scales the scores, by its magnitude over all dimensions.
  if (config.rope.type != RopeType::kDefault) {
    const bool old_style = reader.Find("rope_scaling") != nullptr && !reader.Find("rope_scaling")->empty();
    const nlohmann::json& rope = *reader.Find(old_style ? "rope_scaling" : "rope_parameters");
    ConfigReader scaling(rope, absl::StrCat(reader.where(), old_style ? "rope_scaling." : "rope_parameters."));
    const double all_dim = scaling.Number("mscale_all_dim", 0.0);
    if (all_dim != 0.0 && config.rope.factor > 1.0) {
      const double magnitude = 0.1 * all_dim * std::log(config.rope.factor) + 1.0;
      config.attention_scale *= magnitude * magnitude;
    }
    reader.Adopt(scaling.status());
  }
  config.qkv_bias = config.o_bias = reader.Boolean("attention_bias", false);
}

void ReadDeepseekExperts(ConfigReader& reader, const MoeConfig& defaults, ModelConfig& config) {
  MoeConfig moe = defaults;
  moe.num_experts = reader.Integer("n_routed_experts", defaults.num_experts, 1, kMaxHeads);
  moe.experts_per_token = reader.Integer("num_experts_per_tok", defaults.experts_per_token, 1, moe.num_experts);
  moe.intermediate_size = reader.Integer("moe_intermediate_size", defaults.intermediate_size, 1, kMaxDimension);
  const int64_t shared =
      reader.Integer("n_shared_experts", defaults.shared_intermediate_size / defaults.intermediate_size, 1, kMaxHeads);
  moe.shared_intermediate_size = shared * moe.intermediate_size;
  moe.first_dense_layers = reader.Integer("first_k_dense_replace", defaults.first_dense_layers, 0, kMaxPositions);
  moe.groups = reader.Integer("n_group", defaults.groups, 1, moe.num_experts);
  moe.top_groups = reader.Integer("topk_group", defaults.top_groups, 1, moe.groups);
  moe.routed_scaling_factor = reader.Positive("routed_scaling_factor", defaults.routed_scaling_factor);
  if (moe.num_experts % moe.groups != 0) {
    reader.Fail("n_group",
                absl::StrCat("is ", moe.groups, ", which does not divide n_routed_experts ", moe.num_experts));
  }
  reader.Only("moe_layer_freq", 1);
  reader.Only("ep_size", 1);
  config.moe = moe;
}

}  // namespace retort
