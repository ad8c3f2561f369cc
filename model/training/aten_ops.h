// The parts of a transformer's forward and backward pass through ATen operators: any device, f32 or bf16.
//
// Tensors are of the compute dtype unless said otherwise; what is inside is computed in f32.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace retort {

// LlamaRMSNorm over the last dimension of `x` [rows, width].
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);
// d(loss)/dx given d(loss)/dy; the weight is frozen.
at::Tensor RmsNormBackward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight, double eps);

// Rotates `x` [tokens, heads, head_dim] by `cos` and `sin` [tokens, 1, head_dim / 2], f32. The backward pass is the
// same with -sin.
at::Tensor RotateHalf(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

// silu(gate) * up.
at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up);
struct SwiGluGradient {
  at::Tensor gate;
  at::Tensor up;
};
SwiGluGradient SwiGluBackward(const at::Tensor& dy, const at::Tensor& gate, const at::Tensor& up);

// Causal self-attention with grouped queries, each sequence by itself. Memory grows with the longest sequence, not with
// its square.
struct Attention {
  at::Tensor out;      // [tokens, heads, head_dim]
  at::Tensor log_sum;  // [tokens, heads], f32: log of the sum of exponentials of a row's scores
};
// q [tokens, heads, head_dim]; k, v [tokens, kv_heads, head_dim]; offsets [sequences + 1].
Attention AttentionForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const std::vector<int64_t>& offsets);
struct AttentionGradient {
  at::Tensor q, k, v;
};
AttentionGradient AttentionBackward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                                    const at::Tensor& v, const Attention& forward, const std::vector<int64_t>& offsets);

// Cross-entropy of `hidden` [rows, width] through the head `weight` [vocab, width] against `targets` [rows].
struct HeadLoss {
  double loss = 0.0;  // sum over rows of -ln p(target)
  at::Tensor hidden;  // grad_scale * d(loss)/d(hidden); undefined when not asked for
};
HeadLoss CrossEntropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets, double grad_scale,
                      bool want_gradient);

}  // namespace retort
