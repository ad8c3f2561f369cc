// The operations of a transformer layer, each with a backward pass of its own where autograd records: what is kept for
// it is what must be, frozen weights get no gradient, and nothing depends on the order of atomic additions.
//
// Tensors are of the compute dtype unless said otherwise; what is inside is computed in f32.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace retort {

// x W^T: `x` [..., in_features], `weight` [out_features, in_features]. The result has x's dtype. An f32 `x` stays f32
// beside a bf16 weight, on a GPU too: it is taken as the sum of two bf16 values, which lose as little as f32 does.
at::Tensor Multiply(const at::Tensor& x, const at::Tensor& weight);

// RMSNorm over the last dimension of `x` (Zhang and Sennrich 2019, arXiv:1910.07467), rounded before the weight as
// transformers does. The result has x's dtype, or of an f32 residual stream the weight's.
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);

// Rotates the first 2 * cos.size(-1) dimensions of `x` [tokens, heads, head_dim] by `cos` and `sin` [tokens, 1, dim /
// 2], f32. Pairs are (i, i + dim / 2), or where `interleaved` (2i, 2i + 1), which then come out as (i, i + dim / 2):
// the same dot products.
at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool interleaved);

// silu(gate) * up.
at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up);

// Causal self-attention with grouped queries, each sequence by itself: q [tokens, heads, dim]; k [tokens, kv_heads,
// dim]; v [tokens, kv_heads, v_dim]; `offsets` [sequences + 1] are the sequences' ends. A token sees the last `window`
// tokens, itself included; 0: all. Returns [tokens, heads, v_dim]. Memory grows with the longest sequence, not with its
// square.
at::Tensor PackedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const std::vector<int64_t>& offsets, double scale, int64_t window);

}  // namespace retort
