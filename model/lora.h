// LoRA adapters (Hu et al. 2021, arXiv:2106.09685): W x + (alpha / r) B A x, in PEFT's folder layout.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/weights.h"

namespace retort {

inline constexpr int64_t kMaxLoraRank = 65536;

struct LoraConfig {
  int64_t r = 16;
  double lora_alpha = 32.0;
  double lora_dropout = 0.0;
  std::vector<std::string>
      target_modules;  // suffixes of module names, "q_proj", ..., sorted; "all-linear" is resolved before
  std::string base_model_name_or_path;  // may be empty (null in the file)
};

struct LoraPair {
  at::Tensor a;  // [r, in_features], f32
  at::Tensor b;  // [out_features, r], f32
};

// Modules by full name without prefix, e.g. "model.layers.0.self_attn.q_proj", ordered by name.
struct LoraAdapter {
  LoraConfig config;
  std::map<std::string, LoraPair> modules;
};

// The linear modules of a model by full name with their weight, in the model's order.
struct LinearModule {
  std::string name;
  int64_t in_features = 0;
  int64_t out_features = 0;
};
std::vector<LinearModule> LinearModules(const ModelConfig& config);

// "all-linear" or a list of names -> the sorted suffixes. Errors: kInvalidArgument (a name that matches no module; says
// which there are).
absl::StatusOr<std::vector<std::string>> ResolveTargetModules(const ModelConfig& config,
                                                              const std::vector<std::string>& wanted);

// A as PEFT draws it (Kaiming uniform, a = sqrt(5): U(-1/sqrt(in), 1/sqrt(in))) from a counter-based stream keyed by
// seed and module name; B zero.
absl::StatusOr<LoraAdapter> InitLora(const ModelConfig& model, const LoraConfig& config, uint64_t seed);

// PEFT folder: adapter_config.json and adapter_model.safetensors ("base_model.model.<module>.lora_A.weight"). Switches
// that change the arithmetic and are not supported (use_dora, bias, rank_pattern, ...) are refused by name. Errors:
// kNotFound, kInvalidArgument, kUnimplemented.
absl::StatusOr<LoraAdapter> LoadAdapter(const std::string& folder, const ModelConfig& model);
// Writes both files into an existing folder. The same adapter gives the same bytes.
absl::Status SaveAdapter(const LoraAdapter& adapter, const std::string& folder);

// Adds (alpha / r) B A to the weights, computed in f32 and rounded once to the weights' dtype; weights that alias a
// mapped file are copied first.
absl::Status MergeAdapter(const LoraAdapter& adapter, ModelWeights& weights);

}  // namespace retort
