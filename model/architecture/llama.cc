// Llama 1 to 3.x, and what is built like them (SmolLM2, R1-Distill-Llama).
#include "model/architecture/family.h"

namespace retort {

void ReadLlama(ConfigReader& reader, ModelConfig& config) {
  ReadAttention(reader, {}, config);
  ReadRope(reader, {.head_dim = config.head_dim}, config);
  reader.Only("rope_interleaved", false);
  config.qkv_bias = config.o_bias = reader.Boolean("attention_bias", false);
  config.mlp_bias = reader.Boolean("mlp_bias", false);
}

}  // namespace retort
