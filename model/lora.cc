#include "model/lora.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/hash.h"
#include "common/philox.h"
#include "common/status.h"
#include "model/torch_status.h"

namespace retort {
namespace {

// PEFT's rule: a target is a module's whole name or the end of it after a dot.
bool Matches(const std::string& module, const std::string& target) {
  return module == target || module.ends_with("." + target);
}

at::Tensor* WeightOf(ModelWeights& weights, const std::string& module) {
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    if (!module.starts_with(prefix)) continue;
    for (const ProjectionShape& shape : ProjectionsOf(weights.config, static_cast<int64_t>(i))) {
      if (absl::string_view(module).substr(prefix.size()) == ProjectionName(shape.projection)) {
        return &weights.layers[i][shape.projection].weight;
      }
    }
  }
  return nullptr;
}

// Stable for ever: an adapter's first weights are a function of seed and module name.
uint64_t StreamKey(uint64_t seed, const std::string& module) {
  Sha256 hash;
  hash.UpdateU64(seed);
  hash.UpdateField(module);
  const Sha256Digest digest = hash.Finish();
  uint64_t key = 0;
  for (int i = 0; i < 8; ++i) key = key << 8 | digest[static_cast<size_t>(i)];
  return key;
}

at::Tensor DrawUniform(int64_t rows, int64_t columns, uint64_t key) {
  at::Tensor tensor = at::empty({rows, columns}, at::kFloat);
  float* values = tensor.mutable_data_ptr<float>();
  const double bound = 1.0 / std::sqrt(static_cast<double>(columns));
  for (int64_t i = 0; i < rows * columns; ++i) {
    const PhiloxBlock block = PhiloxAt(key, static_cast<uint64_t>(i) / 2);
    values[i] = static_cast<float>((2.0 * UniformFromPhilox(block, static_cast<int>(i % 2)) - 1.0) * bound);
  }
  return tensor;
}

}  // namespace

std::vector<LinearModule> LinearModules(const ModelConfig& config) {
  std::vector<LinearModule> modules;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    for (const ProjectionShape& shape : ProjectionsOf(config, layer)) {
      modules.push_back({absl::StrCat("model.layers.", layer, ".", ProjectionName(shape.projection)), shape.in_features,
                         shape.out_features});
    }
  }
  return modules;
}

absl::StatusOr<std::vector<std::string>> ResolveTargetModules(const ModelConfig& config,
                                                              const std::vector<std::string>& wanted) {
  if (wanted.empty()) return absl::InvalidArgumentError("target_modules: the list is empty");
  const std::vector<LinearModule> modules = LinearModules(config);
  std::set<std::string> resolved;
  for (const std::string& target : wanted) {
    if (target == "all-linear") {
      for (const LinearModule& module : modules) resolved.insert(module.name.substr(module.name.rfind('.') + 1));
      continue;
    }
    const bool found = std::any_of(modules.begin(), modules.end(),
                                   [&](const LinearModule& module) { return Matches(module.name, target); });
    if (!found) {
      std::set<std::string> there;  // within a layer
      for (const LinearModule& module : modules) {
        const size_t layer = module.name.find('.', std::string("model.layers.").size());
        there.insert(module.name.substr(layer + 1));
      }
      return absl::InvalidArgumentError(absl::StrCat("target_modules: \"", target,
                                                     "\" matches no linear module of the model; there are ",
                                                     absl::StrJoin(there, ", "), " and all-linear"));
    }
    resolved.insert(target);
  }
  return std::vector<std::string>(resolved.begin(), resolved.end());
}

absl::StatusOr<LoraAdapter> InitLora(const ModelConfig& model, const LoraConfig& config, uint64_t seed) {
  if (config.r < 1 || config.r > kMaxLoraRank) {
    return absl::InvalidArgumentError(absl::StrCat("lora.r is ", config.r, "; it must lie in 1..", kMaxLoraRank));
  }
  LoraAdapter adapter;
  adapter.config = config;
  ASSIGN_OR_RETURN(adapter.config.target_modules, ResolveTargetModules(model, config.target_modules));
  const auto draw = [&]() -> absl::Status {
    for (const LinearModule& module : LinearModules(model)) {
      const auto& targets = adapter.config.target_modules;
      if (std::none_of(targets.begin(), targets.end(),
                       [&](const auto& target) { return Matches(module.name, target); })) {
        continue;
      }
      adapter.modules[module.name] = {DrawUniform(config.r, module.in_features, StreamKey(seed, module.name)),
                                      at::zeros({module.out_features, config.r}, at::kFloat)};
    }
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(CatchTorchErrors("initialise the adapter", draw));
  return adapter;
}

absl::Status MergeAdapter(const LoraAdapter& adapter, ModelWeights& weights) {
  const double scale = adapter.config.lora_alpha / static_cast<double>(adapter.config.r);
  for (const auto& [name, pair] : adapter.modules) {
    at::Tensor* weight = WeightOf(weights, name);
    if (weight == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("merge adapter: the model has no linear module \"", name, "\""));
    }
    if (pair.b.size(0) != weight->size(0) || pair.a.size(1) != weight->size(1)) {
      return absl::InvalidArgumentError(absl::StrCat("merge adapter: ", name, " has shape [",
                                                     absl::StrJoin(weight->sizes(), ", "), "], the adapter [",
                                                     pair.b.size(0), ", ", pair.a.size(1), "]"));
    }
    RETURN_IF_ERROR(CatchTorchErrors(absl::StrCat("merge ", name), [&]() -> absl::Status {
      const c10::Device device = weight->device();
      const at::Tensor delta = at::matmul(pair.b.to(device, at::kFloat), pair.a.to(device, at::kFloat));
      *weight = weight->to(at::kFloat).add(delta, scale).to(weight->scalar_type());
      return absl::OkStatus();
    }));
  }
  return absl::OkStatus();
}

}  // namespace retort
