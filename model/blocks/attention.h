// Causal self-attention over packed sequences through ATen operators: any device, f32 or bf16, forward and backward.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace retort {

struct AttentionShape {
  const std::vector<int64_t>& offsets;  // [sequences + 1]
  double scale = 1.0;
  int64_t window = 0;  // the last tokens that a token sees, itself included; 0: all
};

struct Attention {
  at::Tensor out;      // [tokens, heads, v_dim]
  at::Tensor log_sum;  // [tokens, heads], f32: log of the sum of exponentials of a row's scores
};
// q [tokens, heads, dim]; k [tokens, kv_heads, dim]; v [tokens, kv_heads, v_dim].
Attention AttentionForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionShape& shape);

struct AttentionGradient {
  at::Tensor q, k, v;
};
AttentionGradient AttentionBackward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                                    const at::Tensor& v, const Attention& forward, const AttentionShape& shape);

}  // namespace retort
