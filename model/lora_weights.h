// Where an adapter's modules lie in the weights, and what it makes of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "model/lora.h"
#include "model/weights.h"

namespace retort {

// The weight of a linear module, a router, the embedding or the head by its name as an adapter's module; null where
// there is none.
at::Tensor* WeightOf(ModelWeights& weights, const std::string& module);
const at::Tensor* WeightOf(const ModelWeights& weights, const std::string& module);
// Any tensor by its name in the files; null where there is none.
at::Tensor* TensorOf(ModelWeights& weights, const std::string& name);
const at::Tensor* TensorOf(const ModelWeights& weights, const std::string& name);
// Of "model.layers.<index>.<rest>"; null where it is no layer of the model.
LayerWeights* LayerOf(ModelWeights& weights, const std::string& name);

// The weight of a frozen module in `dtype`. A quantised one is first rounded to the dtype that it was quantised from,
// where bitsandbytes and PEFT hand it out as a tensor: in backward passes, for DoRA's norms.
at::Tensor FrozenWeight(const Linear& linear, c10::ScalarType dtype);
// The same of any module but stacked experts, in f32, [out_features, in_features]: an embedding's transposed.
at::Tensor FrozenWeight(const ModelWeights& weights, const std::string& module);
// Puts all quantised modules in their full width, in `dtype`: what bitsandbytes hands out, in one rounding.
void WidenQuantized(ModelWeights& weights, c10::ScalarType dtype);
// The linear module of that name; null where there is none.
const Linear* LinearOf(const ModelWeights& weights, const std::string& module);

// W + scaling B A in f32, on the weight's device, with the frozen part taken out: differentiable in the pair's a and b.
at::Tensor AdaptedWeight(const at::Tensor& weight, const LoraPair& pair, double scaling);
// The L2 norm of each row: what DoRA's magnitude stands against.
at::Tensor RowNorms(const at::Tensor& weight);
// scaling B A of each of stacked experts, [experts, out_features, in_features]: differentiable.
at::Tensor ExpertDeltas(const at::Tensor& a, const at::Tensor& b, int64_t experts, double scaling);

// PiSSA takes its principal part out of the base, which 4 or 8 bits cannot hold.
absl::Status NotPissa(const std::string& module);

// Adds the deltas of `gate_up` and `down` (as ExpertDeltas gives them, or undefined) to the layer's experts. Tensors
// are replaced, not written to; the results have the experts' dtype.
void AddToExperts(const at::Tensor& gate_up, const at::Tensor& down, LayerWeights& layer,
                  std::optional<c10::ScalarType> dtype = std::nullopt);

}  // namespace retort
