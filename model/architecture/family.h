// The model families that Retort knows: one file each, one row each in family.cc.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "model/architecture/config_reader.h"
#include "model/config.h"

namespace retort {

struct Family {
  const char* model_type;    // config.json's
  const char* architecture;  // the class that config.json's `architectures` must name
  // What the configuration class takes where config.json has no such key.
  double rms_norm_eps;
  int64_t max_position_embeddings;
  // Fills what the family decides; the common sizes are there. Reports through the reader.
  void (*read)(ConfigReader& reader, ModelConfig& config);
};

absl::Span<const Family> Families();
// nullptr: not supported.
const Family* FindFamily(absl::string_view model_type);

void ReadLlama(ConfigReader& reader, ModelConfig& config);
void ReadMistral(ConfigReader& reader, ModelConfig& config);
void ReadQwen2(ConfigReader& reader, ModelConfig& config);
void ReadQwen3(ConfigReader& reader, ModelConfig& config);
void ReadPhi3(ConfigReader& reader, ModelConfig& config);
void ReadDeepseekV2(ConfigReader& reader, ModelConfig& config);
void ReadDeepseekV3(ConfigReader& reader, ModelConfig& config);

// Parts that families share.

// No product of two of these overflows, and no tensor shape made of them.
inline constexpr int64_t kMaxDimension = int64_t{1} << 24;
inline constexpr int64_t kMaxLayers = 4096;
inline constexpr int64_t kMaxHeads = int64_t{1} << 16;
inline constexpr int64_t kMaxPositions = int64_t{1} << 30;

// What a family's configuration class takes for a key that is absent.
struct AttentionDefaults {
  std::optional<int64_t> num_key_value_heads;  // absent: as many as heads
  std::optional<int64_t> head_dim;             // absent: hidden_size / heads
};
// num_attention_heads, num_key_value_heads, head_dim.
void ReadAttention(ConfigReader& reader, const AttentionDefaults& defaults, ModelConfig& config);

struct RopeReading {
  int64_t head_dim = 0;  // of what is rotated
  // Whether partial_rotary_factor also counts without a scaling: transformers' Phi-3 does so, the others ignore it.
  bool partial = false;
  // Keys beside rope_scaling that win over those in it (Phi-3's original_max_position_embeddings: its default).
  std::optional<int64_t> original_max_position_embeddings;
  bool yarn_means_longrope = false;  // an old name in Phi-3's configs
};
// rope_theta, rope_scaling or rope_parameters. Needs max_position_embeddings.
void ReadRope(ConfigReader& reader, const RopeReading& reading, ModelConfig& config);

// sliding_window, use_sliding_window, max_window_layers and layer_types as Qwen's classes take them.
void ReadQwenWindows(ConfigReader& reader, ModelConfig& config);
// The same window in every layer; 0: none.
void SetWindow(int64_t window, ModelConfig& config);

// Latent attention and experts, for what DeepSeek-V2 and V3 have in common.
void ReadDeepseekAttention(ConfigReader& reader, ModelConfig& config);
void ReadDeepseekExperts(ConfigReader& reader, const MoeConfig& defaults, ModelConfig& config);

}  // namespace retort
