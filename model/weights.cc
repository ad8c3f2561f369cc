#include "model/weights.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <map>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"
#include "model/device_upload.h"
#include "model/fp8_blocks.h"
#include "model/parallel/shard.h"
#include "model/safetensors_source.h"
#include "model/torch_status.h"

namespace retort {
namespace {

bool IsFloat(c10::ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble;
}

absl::Status CheckShape(const std::string& where, const std::string& name, const std::vector<int64_t>& shape,
                        const at::Tensor& stored) {
  if (stored.sizes() == at::IntArrayRef(shape)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(where, ": tensor \"", name, "\" has shape [",
                                                 absl::StrJoin(stored.sizes(), ", "), "], config.json asks for [",
                                                 absl::StrJoin(shape, ", "), "]"));
}

std::map<std::string, std::vector<int64_t>> ShapesOf(const ModelConfig& config) {
  ModelWeights empty{.config = config};
  std::map<std::string, std::vector<int64_t>> shapes;
  VisitTensors(empty, [&](const TensorPlace& place) {
    shapes[place.name] = place.shape;
    return absl::OkStatus();
  }).IgnoreError();
  return shapes;
}

// Some files give experts one tensor for a whole layer: gate and up [experts, 2 * intermediate, hidden], down [experts,
// hidden, intermediate]. Returns the slice that `name` asks for, undefined where there is no such tensor.
absl::StatusOr<at::Tensor> FromStackedExperts(TensorSource& source, const std::string& name) {
  const size_t at = name.find(".mlp.experts.");
  if (at == std::string::npos) return at::Tensor();
  const std::string prefix = name.substr(0, at + 13);
  const std::string rest = name.substr(at + 13);  // "<index>.gate_proj.weight"
  const int64_t index = std::atoll(rest.c_str());
  const bool down = absl::EndsWith(rest, ".down_proj.weight");
  const std::string stacked = prefix + (down ? "down_proj" : "gate_up_proj");
  if (!source.Has(stacked)) return at::Tensor();
  ASSIGN_OR_RETURN(const at::Tensor whole, source.Get(stacked));
  if (whole.dim() != 3 || index >= whole.size(0) || (!down && whole.size(1) % 2 != 0)) {
    return absl::InvalidArgumentError(absl::StrCat("tensor \"", stacked, "\" has shape [",
                                                   absl::StrJoin(whole.sizes(), ", "), "], which holds no \"", name,
                                                   "\""));
  }
  const at::Tensor expert = whole.select(0, index);
  if (down) return expert;
  const int64_t inner = expert.size(0) / 2;
  return expert.narrow(0, absl::EndsWith(rest, ".up_proj.weight") ? inner : 0, inner);
}

absl::StatusOr<at::Tensor> Read(TensorSource& source, const ModelConfig& config, const std::string& name,
                                c10::ScalarType widened) {
  if (!source.Has(name)) {
    ASSIGN_OR_RETURN(at::Tensor slice, FromStackedExperts(source, name));
    if (slice.defined()) return slice;
  }
  ASSIGN_OR_RETURN(at::Tensor stored, source.Get(name));
  if (config.block_fp8 && stored.scalar_type() == at::kFloat8_e4m3fn) {
    ASSIGN_OR_RETURN(const at::Tensor scales, source.Get(name + "_scale_inv"));
    return DequantiseBlockFp8(stored, scales, widened);
  }
  return stored;
}

// Says what a file holds that the model does not take.
void WarnOfUnused(const TensorSource& source, const ModelConfig& config, const std::vector<std::string>& used,
                  const std::string& where) {
  size_t set_aside = 0;
  std::vector<std::string> unknown;
  for (const std::string& name : source.Names()) {
    if (std::binary_search(used.begin(), used.end(), name)) continue;
    if (absl::EndsWith(name, "_scale_inv") || absl::EndsWith(name, "rotary_emb.inv_freq")) continue;
    if (name == "lm_head.weight" && config.tie_word_embeddings) continue;
    if (absl::StrContains(name, ".mlp.experts.")) continue;  // stacked
    bool mtp = false;
    for (int64_t i = 0; i < config.mtp_layers; ++i) {
      mtp = mtp || absl::StartsWith(name, absl::StrCat("model.layers.", config.num_hidden_layers + i, "."));
    }
    if (mtp) {
      ++set_aside;
    } else {
      unknown.push_back(name);
    }
  }
  if (set_aside > 0) spdlog::info("multi_token_prediction_set_aside model={} tensors={}", where, set_aside);
  if (!unknown.empty()) {
    spdlog::warn("tensors_not_used model={} count={} first={}", where, unknown.size(), unknown.front());
  }
}

}  // namespace

absl::StatusOr<ModelWeights> LoadWeightsFrom(TensorSource& source, const ModelConfig& whole, const ModelConfig& config,
                                             std::optional<c10::ScalarType> dtype, c10::Device device,
                                             const std::string& where) {
  ModelWeights weights;
  weights.config = config;
  const std::map<std::string, std::vector<int64_t>> shapes = ShapesOf(whole);
  std::vector<std::string> used;
  std::unique_ptr<DeviceUploader> uploader;
  RETURN_IF_ERROR(CatchTorchErrors("prepare the GPU for weights", [&]() -> absl::Status {
    if (device.is_cuda()) uploader = std::make_unique<DeviceUploader>(device);
    return absl::OkStatus();
  }));
  const auto load = [&](const TensorPlace& place) -> absl::Status {
    used.push_back(place.name);
    if (config.shard.has_value() && !IsExpertOf(config, place)) return absl::OkStatus();
    return CatchTorchErrors(absl::StrCat(where, ": load ", place.name), [&]() -> absl::Status {
      ASSIGN_OR_RETURN(at::Tensor stored, Read(source, config, place.name, dtype.value_or(c10::ScalarType::Float)));
      RETURN_IF_ERROR(CheckShape(where, place.name, shapes.at(place.name), stored));
      if (config.shard.has_value()) stored = SliceOf(whole, config, place, stored).contiguous();
      if (!IsFloat(stored.scalar_type())) {
        return absl::InvalidArgumentError(absl::StrCat(where, ": tensor \"", place.name, "\" is stored as ",
                                                       c10::toString(stored.scalar_type()),
                                                       "; only floating-point weights are supported"));
      }
      if (uploader != nullptr) stored = uploader->Upload(stored.contiguous());
      // The gate decides in f32, whatever the rest computes in.
      const bool gate = place.tensor == &weights.embed_tokens ? false : absl::StrContains(place.name, ".mlp.gate.");
      *place.tensor = stored.to(device, gate ? at::kFloat : dtype.value_or(stored.scalar_type()));
      return absl::OkStatus();
    });
  };
  RETURN_IF_ERROR(VisitTensors(weights, load));
  if (weights.config.tie_word_embeddings) weights.lm_head = weights.embed_tokens;
  std::sort(used.begin(), used.end());
  WarnOfUnused(source, weights.config, used, where);
  return weights;
}

absl::StatusOr<ModelWeights> LoadWeights(const std::string& folder, std::optional<c10::ScalarType> dtype,
                                         c10::Device device) {
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(folder));
  ASSIGN_OR_RETURN(const std::unique_ptr<TensorSource> source, OpenSafetensorsFolder(folder));
  return LoadWeightsFrom(*source, config, config, dtype, device, folder);
}

absl::StatusOr<ModelWeights> LoadWeightsOfRank(const std::string& folder, std::optional<c10::ScalarType> dtype,
                                               c10::Device device, int rank, int size) {
  ASSIGN_OR_RETURN(const ModelConfig whole, LoadModelConfig(folder));
  ASSIGN_OR_RETURN(const ModelConfig part, ShardConfig(whole, rank, size));
  ASSIGN_OR_RETURN(const std::unique_ptr<TensorSource> source, OpenSafetensorsFolder(folder));
  return LoadWeightsFrom(*source, whole, part, dtype, device, folder);
}

ModelWeights RandomWeights(const ModelConfig& config, c10::ScalarType dtype, c10::Device device, uint64_t seed) {
  ModelWeights weights;
  weights.config = config;
  FillDerived(weights.config);
  weights.config.dtype = dtype;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto draw = [&](const TensorPlace& place) {
    if (place.name.ends_with("norm.weight")) {
      *place.tensor = at::ones(place.shape, at::TensorOptions(dtype).device(device));
    } else if (place.name.ends_with("bias")) {
      *place.tensor = at::zeros(place.shape, at::TensorOptions(dtype).device(device));
    } else {
      *place.tensor = at::empty(place.shape, at::kFloat).normal_(0.0, 0.02, generator).to(device, dtype);
    }
    return absl::OkStatus();
  };
  VisitTensors(weights, draw).IgnoreError();
  if (config.tie_word_embeddings) weights.lm_head = weights.embed_tokens;
  return weights;
}

std::vector<std::pair<std::string, at::Tensor>> NamedTensors(const ModelWeights& weights) {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  ModelWeights shallow = weights;
  VisitTensors(shallow, [&](const TensorPlace& place) {
    tensors.emplace_back(place.name, *place.tensor);
    return absl::OkStatus();
  }).IgnoreError();
  return tensors;
}

void ConvertWeights(ModelWeights& weights, const std::function<at::Tensor(const at::Tensor&)>& convert) {
  const bool tied = weights.lm_head.defined() && weights.lm_head.is_alias_of(weights.embed_tokens);
  VisitTensors(weights, [&](const TensorPlace& place) {
    if (place.tensor->defined()) *place.tensor = convert(*place.tensor);
    return absl::OkStatus();
  }).IgnoreError();
  if (tied) weights.lm_head = weights.embed_tokens;
}

}  // namespace retort
