// Qwen2 and Qwen2.5 (and R1-Distill-Qwen): Llama with biases on q, k and v, and windows in the upper layers.
#include "model/architecture/family.h"

namespace retort {

void ReadQwen2(ConfigReader& reader, ModelConfig& config) {
  ReadAttention(reader, {.num_key_value_heads = 32}, config);
  ReadRope(reader, {.head_dim = config.head_dim}, config);
  ReadQwenWindows(reader, config);
  config.qkv_bias = true;
}

}  // namespace retort
