// DeepSeek-V2 and V2-Lite (arXiv:2405.04434): softmax gate, chosen by score or by group.
#include "model/architecture/family.h"

namespace retort {

void ReadDeepseekV2(ConfigReader& reader, ModelConfig& config) {
  ReadDeepseekAttention(reader, config);
  config.rope.interleaved = true;
  MoeConfig defaults{.num_experts = 64,
                     .experts_per_token = 6,
                     .intermediate_size = 1407,
                     .shared_intermediate_size = 2 * 1407,
                     .first_dense_layers = 0,
                     .scoring = MoeConfig::Scoring::kSoftmax,
                     .group_score = MoeConfig::GroupScore::kMax};
  if (reader.Find("num_experts_per_tok") == nullptr) reader.Fail("num_experts_per_tok", "is missing");
  ReadDeepseekExperts(reader, defaults, config);
  const std::string method = reader.String("topk_method", "greedy");
  if (method == "greedy") {  // groups are then not looked at
    config.moe->groups = config.moe->top_groups = 1;
  } else if (method == "group_limited_greedy") {
    for (const char* key : {"n_group", "topk_group"}) {
      if (reader.Find(key) == nullptr) reader.Fail(key, "is missing (topk_method group_limited_greedy needs it)");
    }
  } else {
    reader.Unsupported("topk_method", method);
  }
  reader.Only("scoring_func", "softmax");
  // norm_topk_prob is not looked at: transformers' DeepseekV2TopkRouter never normalises.
  config.mlp_bias = reader.Boolean("mlp_bias", false);
}

}  // namespace retort
