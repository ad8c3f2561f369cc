// Causal attention over packed samples as a hand-written training step wants it: over views, with what it makes put
// where it is told to.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace retort::internal {

// One micro-batch's samples. Made once for all layers.
struct PackedSamples {
  // `sequence_offsets` [samples + 1] begins with 0.
  PackedSamples(const std::vector<int64_t>& sequence_offsets, c10::Device device);
  int64_t count() const { return static_cast<int64_t>(offsets.size()) - 1; }

  std::vector<int64_t> offsets;  // [samples + 1]
  at::Tensor cumulative;         // the same on the device, int32
  int64_t longest = 0;
};

enum class AttentionEngine {
  kBest,   // the first of the others, in this order, that takes the case
  kCudnn,  // cuDNN's graphs: cudnn_attention.h
  kFlash,  // flash-2 (Dao 2023, arXiv:2307.08691) as torch has it: any GPU from Ampere on, bf16 and f16
  kAten,   // blocks of ATen products: any device and type
};

// What is the same for every pass of a layer.
struct AttentionOptions {
  double scale = 1.0;
  int64_t window = 0;                               // the last tokens that a token sees, itself included; 0: all
  bool deterministic = true;                        // the same inputs give the same bits
  AttentionEngine engine = AttentionEngine::kBest;  // another one than the best throws where it does not take the case
};

// What the backward pass wants of the forward pass.
struct AttentionTape {
  at::Tensor log_sum;  // f32, of a row's scores: [tokens, heads] or, as cuDNN wants it, [samples, heads, length]
};

// [tokens, heads], of either.
at::Tensor LogSumByToken(const AttentionTape& tape);

// q [tokens, heads, dim], k [tokens, kv_heads, dim], v [tokens, kv_heads, v_dim]: views with stride 1 in the last
// dimension. Writes out [tokens, heads, v_dim], such a view too.
void AttendForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const PackedSamples& samples,
                   const AttentionOptions& options, at::Tensor& out, AttentionTape& tape);

// Writes dq, dk and dv, views like q, k and v. The engine need not be the forward pass's.
void AttendBackward(const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const at::Tensor& out, const AttentionTape& tape, const PackedSamples& samples,
                    const AttentionOptions& options, at::Tensor& dq, at::Tensor& dk, at::Tensor& dv);

}  // namespace retort::internal
