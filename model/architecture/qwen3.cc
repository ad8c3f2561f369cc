// Qwen3 (dense): RMSNorm over each head's queries and keys, head_dim apart from hidden_size (arXiv:2505.09388).
#include "model/architecture/family.h"

namespace retort {

void ReadQwen3(ConfigReader& reader, ModelConfig& config) {
  ReadAttention(reader, {.num_key_value_heads = 32, .head_dim = 128}, config);
  ReadRope(reader, {.head_dim = config.head_dim}, config);
  ReadQwenWindows(reader, config);
  config.qk_norm = true;
  config.qkv_bias = config.o_bias = reader.Boolean("attention_bias", false);
}

}  // namespace retort
