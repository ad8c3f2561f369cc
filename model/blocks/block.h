// One transformer layer of any family, from its description: what training and generation both run.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/weights.h"

namespace retort {

// What the two do differently.
class LayerContext {
 public:
  virtual ~LayerContext() = default;
  // `x` [tokens, in_features] through a linear module of the layer, with its bias: [tokens, out_features].
  virtual at::Tensor Project(Projection projection, const at::Tensor& x) = 0;
  // What each rank has of a sum, added up over the ranks of a tensor-parallel model.
  virtual at::Tensor Combine(const at::Tensor& partial) { return partial; }
  // Causal attention: q [tokens, heads, head_dim], k [tokens, kv_heads, head_dim], v [tokens, kv_heads, v_dim], all
  // rotated, -> [tokens, heads, v_dim]. `window`: the last tokens that one sees, 0: all.
  virtual at::Tensor Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window) = 0;
};

// Of the tokens of a pass: [tokens, 1, rope.dim / 2], f32.
struct RopeRows {
  at::Tensor cos, sin;
};

// x: [tokens, hidden], the residual stream; returns it after layer `index`.
at::Tensor RunBlock(const ModelConfig& config, const LayerWeights& layer, int64_t index, const at::Tensor& x,
                    const RopeRows& rope, LayerContext& context);

// The mixture of experts alone: x [tokens, hidden], normed.
at::Tensor RoutedExperts(const MoeConfig& moe, const LayerWeights& layer, const at::Tensor& x);

}  // namespace retort
