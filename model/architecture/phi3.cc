// Phi-3, Phi-3.5 and Phi-4-mini: fused qkv and gate_up, LongRoPE, partial rotation, a sliding window
// (arXiv:2404.14219).
#include "model/architecture/family.h"

namespace retort {

void ReadPhi3(ConfigReader& reader, ModelConfig& config) {
  ReadAttention(reader, {}, config);
  ReadRope(reader,
           {.head_dim = config.head_dim,
            .partial = true,
            .original_max_position_embeddings = 4096,
            .yarn_means_longrope = true},
           config);
  SetWindow(reader.Integer("sliding_window", 0, 1, kMaxPositions), config);
  config.fused_projections = true;
}

}  // namespace retort
