#include "model/weights.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
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
#include "common/check.h"
#include "common/status.h"
#include "model/device_upload.h"
#include "model/parallel/shard.h"
#include "model/plain_source.h"
#include "model/quantized/bitsandbytes.h"
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

absl::Status CheckFloat(const std::string& where, const std::string& name, const at::Tensor& stored) {
  if (IsFloat(stored.scalar_type())) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(where, ": tensor \"", name, "\" is stored as ",
                                                 c10::toString(stored.scalar_type()),
                                                 "; only floating-point weights are supported"));
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

absl::StatusOr<std::optional<QuantizedMatrix>> ReadIfQuantized(TensorSource& source, const ModelConfig& config,
                                                               const std::string& name) {
  if (!config.bitsandbytes) return std::nullopt;
  return ReadQuantized(source, name);
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
    if (config.bitsandbytes && IsQuantizedPart(source, name)) continue;
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

// Fills the places of a model one after the other.
class Loader {
 public:
  Loader(TensorSource& source, const ModelConfig& whole, const ModelConfig& config,
         std::optional<c10::ScalarType> dtype, c10::Device device, const std::string& where,
         const BaseQuantisation& quantisation)
      : source_(source),
        whole_(whole),
        config_(config),
        dtype_(dtype),
        device_(device),
        where_(where),
        quantisation_(quantisation),
        shapes_(ShapesOf(whole)),
        plain_(PlainTensors(source, config, widened())) {}

  absl::Status Prepare() {
    return CatchTorchErrors("prepare the GPU for weights", [&]() -> absl::Status {
      if (device_.is_cuda()) uploader_ = std::make_unique<DeviceUploader>(device_);
      return absl::OkStatus();
    });
  }

  absl::Status Load(const TensorPlace& place) {
    if (config_.shard.has_value() && !IsExpertOf(config_, place)) return absl::OkStatus();
    return CatchTorchErrors(absl::StrCat(where_, ": load ", place.name), [&]() -> absl::Status {
      ASSIGN_OR_RETURN(const bool quantised, LoadQuantized(place));
      return quantised ? absl::OkStatus() : LoadPlain(place);
    });
  }

 private:
  c10::ScalarType widened() const { return dtype_.value_or(c10::ScalarType::Float); }
  const std::vector<int64_t>& ShapeOf(const TensorPlace& place) const { return shapes_.at(place.name); }

  absl::StatusOr<at::Tensor> ReadFloat(const TensorPlace& place) {
    ASSIGN_OR_RETURN(at::Tensor stored, plain_->Get(place.name));
    RETURN_IF_ERROR(CheckShape(where_, place.name, ShapeOf(place), stored));
    RETURN_IF_ERROR(CheckFloat(where_, place.name, stored));
    return stored;
  }

  absl::Status LoadPlain(const TensorPlace& place) {
    ASSIGN_OR_RETURN(at::Tensor stored, ReadFloat(place));
    if (config_.shard.has_value()) stored = SliceOf(whole_, config_, place, stored).contiguous();
    if (uploader_ != nullptr) stored = uploader_->Upload(stored.contiguous());
    // The gate decides in f32, whatever the rest computes in.
    const bool gate = !place.vocabulary && absl::StrContains(place.name, ".mlp.gate.");
    *place.tensor = stored.to(device_, gate ? at::kFloat : dtype_.value_or(stored.scalar_type()));
    return absl::OkStatus();
  }

  // Keeps or makes the module quantised, as asked. False: it is to be loaded as it is.
  absl::StatusOr<bool> LoadQuantized(const TensorPlace& place) {
    if (place.weight_of == nullptr) return false;
    std::optional<QuantizedMatrix> matrix;
    if (quantisation_.keep_stored) {
      ASSIGN_OR_RETURN(matrix, ReadIfQuantized(source_, config_, place.name));
    }
    if (matrix.has_value()) {
      if (std::vector<int64_t>{matrix->rows, matrix->columns} != ShapeOf(place)) {
        return absl::InvalidArgumentError(absl::StrCat(where_, ": tensor \"", place.name, "\" has shape [",
                                                       matrix->rows, ", ", matrix->columns, "], config.json asks for [",
                                                       absl::StrJoin(ShapeOf(place), ", "), "]"));
      }
      matrix = ToDevice(*matrix, device_);
    } else if (quantisation_.quantise.has_value() && !config_.bitsandbytes) {
      ASSIGN_OR_RETURN(const at::Tensor stored, ReadFloat(place));
      auto made = Quantise(stored.to(device_, widened()), *quantisation_.quantise);
      if (!made.ok()) return WithContext(made.status(), absl::StrCat(where_, ": tensor \"", place.name, "\""));
      matrix = *std::move(made);
    } else {
      return false;
    }
    place.weight_of->quantized = std::make_shared<const QuantizedMatrix>(*std::move(matrix));
    return true;
  }

  TensorSource& source_;
  const ModelConfig& whole_;
  const ModelConfig& config_;
  const std::optional<c10::ScalarType> dtype_;
  const c10::Device device_;
  const std::string& where_;
  const BaseQuantisation& quantisation_;
  const std::map<std::string, std::vector<int64_t>> shapes_;
  const std::unique_ptr<TensorSource> plain_;
  std::unique_ptr<DeviceUploader> uploader_;
};

}  // namespace

absl::StatusOr<ModelWeights> LoadWeightsFrom(TensorSource& source, const ModelConfig& whole, const ModelConfig& config,
                                             std::optional<c10::ScalarType> dtype, c10::Device device,
                                             const std::string& where, const BaseQuantisation& quantisation) {
  RETORT_CHECK(!config.shard.has_value() || (!quantisation.keep_stored && !quantisation.quantise.has_value()));
  ModelWeights weights;
  weights.config = config;
  Loader loader(source, whole, config, dtype, device, where, quantisation);
  RETURN_IF_ERROR(loader.Prepare());
  std::vector<std::string> used;
  RETURN_IF_ERROR(VisitTensors(weights, [&](const TensorPlace& place) {
    used.push_back(place.name);
    return loader.Load(place);
  }));
  if (weights.config.tie_word_embeddings) weights.lm_head = weights.embed_tokens;
  std::sort(used.begin(), used.end());
  WarnOfUnused(source, weights.config, used, where);
  return weights;
}

bool HasQuantized(const ModelWeights& weights) {
  return std::any_of(weights.layers.begin(), weights.layers.end(), [](const LayerWeights& layer) {
    return std::any_of(layer.linears.begin(), layer.linears.end(),
                       [](const Linear& linear) { return linear.quantized != nullptr; });
  });
}

absl::StatusOr<ModelWeights> LoadWeights(const std::string& folder, std::optional<c10::ScalarType> dtype,
                                         c10::Device device, const BaseQuantisation& quantisation) {
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(folder));
  ASSIGN_OR_RETURN(const std::unique_ptr<TensorSource> source, OpenSafetensorsFolder(folder));
  return LoadWeightsFrom(*source, config, config, dtype, device, folder, quantisation);
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
  at::Generator generator =
      device.is_cpu() ? at::detail::createCPUGenerator(seed) : at::globalContext().defaultGenerator(device);
  generator.set_current_seed(seed);
  const auto draw = [&](const TensorPlace& place) {
    if (place.name.ends_with("norm.weight")) {
      *place.tensor = at::ones(place.shape, at::TensorOptions(dtype).device(device));
    } else if (place.name.ends_with("bias")) {
      *place.tensor = at::zeros(place.shape, at::TensorOptions(dtype).device(device));
    } else {
      *place.tensor = at::empty(place.shape, device).normal_(0.0, 0.02, generator).to(dtype);
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
