// A frozen linear module with its adapter, differentiable.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/weights.h"

namespace retort {

// y = W x + b + scaling * B A (mask * x). x [tokens, in] of the compute dtype; `a` [r, in], `b` [out, r], f32 leaves
// whose gradients are computed in f32; `mask` [tokens, in] f32 of a dropout, or undefined. Keeps x and A x for the
// backward pass; the frozen weight gets no gradient, the bias does where it wants one.
at::Tensor LoraLinear(const at::Tensor& x, const Linear& base, const at::Tensor& a, const at::Tensor& b, double scaling,
                      const at::Tensor& mask);

// DoRA (Liu et al. 2024, arXiv:2402.09353): y = m / |W + scaling * B A| * (W x + scaling * B A x) + b with the norm of
// each row, through which no gradient goes. `magnitude` [out], f32. With a mask, as PEFT: what the magnitude changes is
// computed from the masked x, W x + b itself from x.
at::Tensor DoraLinear(const at::Tensor& x, const Linear& base, const at::Tensor& a, const at::Tensor& b,
                      const at::Tensor& magnitude, double scaling, const at::Tensor& mask);

// Rows `ids` of the embedding `table` [vocab, hidden], frozen, with its adapter: E[ids] + scaling * (B A)^T[ids], in
// f32 and rounded to the table's dtype. `a` [r, vocab], `b` [hidden, r]; `magnitude` [hidden] of DoRA, or undefined:
// the norms are those of the table's columns. The column `padding` of `a` gets no gradient; -1: all do.
at::Tensor LoraEmbedding(const at::Tensor& ids, const at::Tensor& table, const at::Tensor& a, const at::Tensor& b,
                         const at::Tensor& magnitude, double scaling, int64_t padding);

// scaling * A (mask * x) in f32, what B takes.
at::Tensor LoraLow(const at::Tensor& x, const at::Tensor& a, double scaling, const at::Tensor& mask);

// m / |W + scaling * B A| * (W + scaling * B A) in f32: DoRA's weight, differentiable as in DoraLinear.
at::Tensor DoraWeight(const at::Tensor& weight, const at::Tensor& a, const at::Tensor& b, const at::Tensor& magnitude,
                      double scaling);

// y = W x + b, differentiable in each of them that wants a gradient.
at::Tensor FrozenLinear(const at::Tensor& x, const Linear& base);

}  // namespace retort
