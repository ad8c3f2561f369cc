// DeepSeek-V3 and R1 (arXiv:2412.19437): sigmoid gate with a correction bias, chosen within the best groups, weights
// normalised; layers of multi-token prediction are set aside.
#include "model/architecture/family.h"

namespace retort {

void ReadDeepseekV3(ConfigReader& reader, ModelConfig& config) {
  ReadDeepseekAttention(reader, config);
  config.rope.interleaved = reader.Boolean("rope_interleave", true);
  MoeConfig defaults{.num_experts = 256,
                     .experts_per_token = 8,
                     .intermediate_size = 2048,
                     .shared_intermediate_size = 2048,
                     .first_dense_layers = 3,
                     .scoring = MoeConfig::Scoring::kSigmoid,
                     .correction_bias = true,
                     .groups = 8,
                     .top_groups = 4,
                     .group_score = MoeConfig::GroupScore::kTopTwoSum,
                     .routed_scaling_factor = 2.5};
  ReadDeepseekExperts(reader, defaults, config);
  config.moe->normalize = reader.Boolean("norm_topk_prob", true);
  if (config.moe->num_experts / config.moe->groups < 2) {
    reader.Fail("n_group", "leaves fewer than 2 experts a group; a group's score is the sum of its best two");
  }
  reader.Only("topk_method", "noaux_tc");
  reader.Only("scoring_func", "sigmoid");
  config.mtp_layers = reader.Integer("num_nextn_predict_layers", 1, 0, kMaxLayers);
}

}  // namespace retort
