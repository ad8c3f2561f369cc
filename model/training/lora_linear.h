// A frozen linear module with its adapter, differentiable.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/weights.h"

namespace retort {

// y = W x + b + scaling * B A (mask * x). x [tokens, in] of the compute dtype; `a` [r, in], `b` [out, r], f32 leaves
// whose gradients are computed in f32; `mask` [tokens, in] f32 of a dropout, or undefined. Keeps x and A x for the
// backward pass; the frozen weight gets no gradient.
at::Tensor LoraLinear(const at::Tensor& x, const Linear& base, const at::Tensor& a, const at::Tensor& b, double scaling,
                      const at::Tensor& mask);

// y = W x + b where only x may need a gradient.
at::Tensor FrozenLinear(const at::Tensor& x, const Linear& base);

}  // namespace retort
