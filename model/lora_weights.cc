#include "model/lora_weights.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/matmul.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/status.h"
#include "model/torch_status.h"
#include "model/vocabulary.h"

namespace retort {
namespace {

constexpr absl::string_view kLayers = "model.layers.";
constexpr const char* kEmbeddings = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

// The part of a name after "model.layers.<index>.".
absl::string_view WithinLayer(absl::string_view name) {
  return name.substr(std::min(name.size(), name.find('.', kLayers.size()) + 1));
}

absl::Status Misfit(const std::string& name, const at::Tensor& weight, const at::Tensor& a, const at::Tensor& b) {
  return absl::InvalidArgumentError(absl::StrCat("merge adapter: ", name, " has shape [",
                                                 absl::StrJoin(weight.sizes(), ", "), "], the adapter [", b.size(0),
                                                 ", ", a.size(1), "]"));
}

absl::Status Missing(const std::string& name) {
  return absl::InvalidArgumentError(absl::StrCat("merge adapter: the model has no linear module \"", name, "\""));
}

using MaybeDtype = std::optional<c10::ScalarType>;

absl::Status MergeExperts(const std::string& name, const LoraPair& pair, double scaling, MaybeDtype dtype,
                          ModelWeights& weights) {
  LayerWeights* layer = LayerOf(weights, name);
  if (layer == nullptr || layer->experts.empty()) return Missing(name);
  const auto experts = static_cast<int64_t>(layer->experts.size());
  const bool down = absl::EndsWith(name, ".down_proj");
  const Expert& first = layer->experts.front();
  const int64_t out = down ? first.down.size(0) : first.gate.size(0) + first.up.size(0);
  const int64_t in = down ? first.down.size(1) : first.gate.size(1);
  if (pair.a.size(0) % experts != 0 || pair.b.size(0) != out || pair.a.size(1) != in) {
    return Misfit(name, down ? first.down : first.gate, pair.a, pair.b);
  }
  const c10::Device device = first.gate.device();
  const at::Tensor deltas = ExpertDeltas(pair.a.to(device), pair.b.to(device), experts, scaling);
  AddToExperts(down ? at::Tensor() : deltas, down ? deltas : at::Tensor(), *layer, dtype);
  return absl::OkStatus();
}

absl::Status MergeModule(const std::string& name, const LoraPair& pair, double scaling, MaybeDtype dtype,
                         ModelWeights& weights) {
  if (absl::StrContains(name, ".mlp.experts.")) return MergeExperts(name, pair, scaling, dtype, weights);
  at::Tensor* weight = WeightOf(weights, name);
  if (weight == nullptr) return Missing(name);
  if (const Linear* linear = LinearOf(weights, name); linear != nullptr && linear->quantized != nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("merge adapter: ", name, " is kept quantised; load the base widened"));
  }
  const bool embedding = name == kEmbeddingModule;
  const at::Tensor base = embedding ? weight->t() : *weight;
  if (pair.b.size(0) != base.size(0) || pair.a.size(1) != base.size(1)) return Misfit(name, base, pair.a, pair.b);
  at::Tensor merged = AdaptedWeight(base, pair, scaling);
  if (pair.magnitude.defined()) {
    merged = merged * (pair.magnitude.to(merged.device()) / RowNorms(merged)).unsqueeze(1);
  }
  if (embedding) merged = merged.t().contiguous();
  // A router decides in f32.
  const bool router = absl::EndsWith(name, ".mlp.gate.weight");
  *weight = merged.to(router ? weight->scalar_type() : dtype.value_or(weight->scalar_type()));
  return absl::OkStatus();
}

// Puts the weight `name` of a quantised module in its full width.
void Widen(absl::string_view name, ModelWeights& weights) {
  auto* linear = const_cast<Linear*>(LinearOf(weights, std::string(absl::StripSuffix(name, ".weight"))));
  if (linear == nullptr || linear->quantized == nullptr) return;
  linear->weight = FrozenWeight(*linear, weights.embed_tokens.scalar_type());
  linear->quantized = nullptr;
}

absl::Status Replace(const std::string& name, const at::Tensor& value, MaybeDtype dtype, ModelWeights& weights) {
  const bool embeddings = name == kHead || name == kEmbeddings;
  at::Tensor* tensor = TensorOf(weights, name);
  if (tensor != nullptr && !tensor->defined()) Widen(name, weights);
  if (tensor == nullptr || !tensor->defined()) {
    return absl::InvalidArgumentError(absl::StrCat("merge adapter: the model has no tensor \"", name, "\""));
  }
  if (tensor->sizes() != value.sizes()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "merge adapter: ", name, " has shape [", absl::StrJoin(tensor->sizes(), ", "), "], the adapter's [",
        absl::StrJoin(value.sizes(), ", "), "]", embeddings ? "; was the vocabulary resized?" : ""));
  }
  // Vectors are small: where a dtype is asked for they stay as exact as they are.
  const bool exact = value.dim() == 1 && dtype.has_value();
  *tensor = value.to(tensor->device(), exact ? at::kFloat : dtype.value_or(tensor->scalar_type()));
  return absl::OkStatus();
}

// Puts whole tensors in. A tied model stays tied where its two embeddings are given as one.
absl::Status ReplaceAll(const std::map<std::string, at::Tensor>& tensors, bool together, MaybeDtype dtype,
                        ModelWeights& weights) {
  for (const auto& [name, value] : tensors) RETURN_IF_ERROR(Replace(name, value, dtype, weights));
  const bool touched = tensors.contains(kHead) || tensors.contains(kEmbeddings);
  if (!weights.config.tie_word_embeddings || !touched) return absl::OkStatus();
  if (together) {
    weights.lm_head = weights.embed_tokens;
  } else {
    weights.config.tie_word_embeddings = false;
  }
  return absl::OkStatus();
}

// Puts in the embeddings that the adapter brings along. PEFT copies them into the model's: what is tied there is both.
absl::Status ReplaceEmbeddings(const LoraAdapter& adapter, MaybeDtype dtype, ModelWeights& weights) {
  const auto embeddings = adapter.replaced.find(kEmbeddings);
  const auto head = adapter.replaced.find(kHead);
  const bool both = embeddings != adapter.replaced.end() && head != adapter.replaced.end();
  const bool one =
      !adapter.replaced.empty() && !both && !adapter.full.contains(kEmbeddings) && !adapter.full.contains(kHead);
  if (!weights.config.tie_word_embeddings || !(one || (both && embeddings->second.equal(head->second)))) {
    return ReplaceAll(adapter.replaced, /*together=*/false, dtype, weights);
  }
  RETURN_IF_ERROR(Replace(kEmbeddings, adapter.replaced.begin()->second, dtype, weights));
  weights.lm_head = weights.embed_tokens;
  return absl::OkStatus();
}

}  // namespace

LayerWeights* LayerOf(ModelWeights& weights, const std::string& name) {
  if (!absl::StartsWith(name, kLayers)) return nullptr;
  const auto index = static_cast<size_t>(std::atoll(name.c_str() + kLayers.size()));
  return index < weights.layers.size() ? &weights.layers[index] : nullptr;
}

const Linear* LinearOf(const ModelWeights& weights, const std::string& module) {
  const LayerWeights* layer = LayerOf(const_cast<ModelWeights&>(weights), module);
  if (layer == nullptr) return nullptr;
  const absl::string_view within = WithinLayer(module);
  for (const ProjectionShape& shape : ProjectionsOf(weights.config, layer - weights.layers.data())) {
    if (within == ProjectionName(shape.projection)) return &(*layer)[shape.projection];
  }
  return nullptr;
}

at::Tensor FrozenWeight(const Linear& linear, c10::ScalarType dtype) {
  if (linear.quantized == nullptr) return linear.weight.to(dtype);
  const QuantizedMatrix& matrix = *linear.quantized;
  return Dequantise(matrix, matrix.type == QuantType::kInt8 ? dtype : matrix.source_dtype).to(dtype);
}

at::Tensor FrozenWeight(const ModelWeights& weights, const std::string& module) {
  if (const Linear* linear = LinearOf(weights, module); linear != nullptr) return FrozenWeight(*linear, at::kFloat);
  const at::Tensor weight = WeightOf(weights, module)->to(at::kFloat);
  return module == kEmbeddingModule ? weight.t() : weight;
}

void WidenQuantized(ModelWeights& weights, c10::ScalarType dtype) {
  for (LayerWeights& layer : weights.layers) {
    for (Linear& linear : layer.linears) {
      if (linear.quantized == nullptr) continue;
      linear.weight = linear.Weight(dtype);
      linear.quantized = nullptr;
    }
  }
}

at::Tensor* WeightOf(ModelWeights& weights, const std::string& module) {
  if (module == kEmbeddingModule) return &weights.embed_tokens;
  if (module == kHeadModule) return &weights.lm_head;
  LayerWeights* layer = LayerOf(weights, module);
  if (layer == nullptr) return nullptr;
  if (WithinLayer(module) == "mlp.gate.weight") return layer->router.defined() ? &layer->router : nullptr;
  auto* linear = const_cast<Linear*>(LinearOf(weights, module));
  return linear == nullptr ? nullptr : &linear->weight;
}

const at::Tensor* WeightOf(const ModelWeights& weights, const std::string& module) {
  return WeightOf(const_cast<ModelWeights&>(weights), module);
}

at::Tensor* TensorOf(ModelWeights& weights, const std::string& name) {
  if (name == "lm_head.weight") return &weights.lm_head;
  at::Tensor* found = nullptr;
  VisitTensors(weights, [&](const TensorPlace& place) {
    if (place.name == name) found = place.tensor;
    return found == nullptr ? absl::OkStatus() : absl::CancelledError();
  }).IgnoreError();
  return found;
}

const at::Tensor* TensorOf(const ModelWeights& weights, const std::string& name) {
  return TensorOf(const_cast<ModelWeights&>(weights), name);
}

at::Tensor AdaptedWeight(const at::Tensor& weight, const LoraPair& pair, double scaling) {
  const auto on_device = [&](const at::Tensor& tensor) { return tensor.to(weight.device(), at::kFloat); };
  at::Tensor base = weight.to(at::kFloat);
  if (pair.frozen_a.defined()) {
    base = base.sub(at::matmul(on_device(pair.frozen_b), on_device(pair.frozen_a)), scaling);
  }
  return base.add(at::matmul(on_device(pair.b), on_device(pair.a)), scaling);
}

absl::Status NotPissa(const std::string& module) {
  return absl::InvalidArgumentError(
      absl::StrCat("init_lora_weights: pissa wants a base in float32, bfloat16 or float16; ", module, " is quantised"));
}

at::Tensor RowNorms(const at::Tensor& weight) { return at::linalg_vector_norm(weight, 2, {1}); }

at::Tensor ExpertDeltas(const at::Tensor& a, const at::Tensor& b, int64_t experts, double scaling) {
  const at::Tensor of_a = a.view({experts, -1, a.size(1)});                     // [experts, r, in]
  const at::Tensor of_b = b.view({b.size(0), -1, experts}).permute({2, 0, 1});  // [experts, out, r]
  return at::bmm(of_b, of_a).mul(scaling);
}

void AddToExperts(const at::Tensor& gate_up, const at::Tensor& down, LayerWeights& layer,
                  std::optional<c10::ScalarType> dtype) {
  for (size_t i = 0; i < layer.experts.size(); ++i) {
    Expert& expert = layer.experts[i];
    const auto add = [&](at::Tensor& weight, const at::Tensor& delta) {
      weight = (weight.to(at::kFloat) + delta).to(dtype.value_or(weight.scalar_type()));
    };
    const auto index = static_cast<int64_t>(i);
    if (gate_up.defined()) {
      const int64_t inner = expert.gate.size(0);
      const at::Tensor both = gate_up.select(0, index);
      add(expert.gate, both.narrow(0, 0, inner));
      add(expert.up, both.narrow(0, inner, inner));
    }
    if (down.defined()) add(expert.down, down.select(0, index));
  }
}

absl::Status PrepareBase(const LoraAdapter& adapter, ModelWeights& weights) {
  if (adapter.config.init_lora_weights == "pissa") {
    return absl::InvalidArgumentError("prepare base: the frozen parts of a PiSSA adapter have not been found");
  }
  RETURN_IF_ERROR(GrowVocabulary(VocabularyUnder(adapter, weights.config), weights));
  for (const auto& module : adapter.modules) {
    const std::string& name = module.first;
    const LoraPair& pair = module.second;
    if (!pair.frozen_a.defined()) continue;
    at::Tensor* weight = WeightOf(weights, name);
    if (weight == nullptr) return Missing(name);
    if (!weight->defined()) return NotPissa(name);
    if (pair.frozen_b.size(0) != weight->size(0) || pair.frozen_a.size(1) != weight->size(1)) {
      return Misfit(name, *weight, pair.frozen_a, pair.frozen_b);
    }
    RETURN_IF_ERROR(CatchTorchErrors(absl::StrCat("prepare ", name), [&]() -> absl::Status {
      const at::Tensor frozen = at::matmul(pair.frozen_b.to(weight->device()), pair.frozen_a.to(weight->device()));
      *weight = weight->to(at::kFloat).sub(frozen, ScalingOf(adapter.config, name)).to(weight->scalar_type());
      return absl::OkStatus();
    }));
  }
  return ReplaceEmbeddings(adapter, std::nullopt, weights);
}

absl::Status MergeAdapter(const LoraAdapter& adapter, ModelWeights& weights, std::optional<c10::ScalarType> dtype) {
  if (adapter.config.init_lora_weights == "pissa") {
    LoraAdapter complete = adapter;
    RETURN_IF_ERROR(CompletePissa(weights, complete));
    return MergeAdapter(complete, weights, dtype);
  }
  RETURN_IF_ERROR(GrowVocabulary(VocabularyUnder(adapter, weights.config), weights));
  RETURN_IF_ERROR(CatchTorchErrors("merge adapter", [&] { return ReplaceEmbeddings(adapter, dtype, weights); }));
  bool part = false;
  for (const auto& module : adapter.modules) {
    const std::string& name = module.first;
    RETURN_IF_ERROR(CatchTorchErrors(absl::StrCat("merge ", name), [&] {
      return MergeModule(name, module.second, ScalingOf(adapter.config, name), dtype, weights);
    }));
    part = part || name == kEmbeddingModule || name == kHeadModule;
  }
  if (part) weights.config.tie_word_embeddings = false;
  return CatchTorchErrors("merge adapter",
                          [&] { return ReplaceAll(adapter.full, adapter.config.ensure_weight_tying, dtype, weights); });
}

}  // namespace retort
