// Mistral 7B and its like: Llama with a sliding window (arXiv:2310.06825).
#include "model/architecture/family.h"

namespace retort {

void ReadMistral(ConfigReader& reader, ModelConfig& config) {
  ReadAttention(reader, {.num_key_value_heads = 8}, config);
  ReadRope(reader, {.head_dim = config.head_dim}, config);
  // Absent it is 4096; null means none. transformers takes no notice of layer_types here (it warns): every layer has
  // the window.
  SetWindow(reader.IsNull("sliding_window") ? 0 : reader.Integer("sliding_window", 4096, 1, kMaxPositions), config);
}

}  // namespace retort
