// Causal attention over packed samples as a hand-written training step wants it: with views for inputs, and gradients
// put where they are told to.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace retort::internal {

// One micro-batch's samples. Made once for all layers.
struct PackedSamples {
  PackedSamples(const std::vector<int64_t>& sequence_offsets, c10::Device device);
  int64_t count() const { return static_cast<int64_t>(offsets.size()) - 1; }
  bool of_one_length() const { return offsets.back() == count() * longest; }

  std::vector<int64_t> offsets;  // [samples + 1]
  at::Tensor cumulative;         // the same on the device, int32
  int64_t longest = 0;
};

// What is the same for every pass of a layer.
struct AttentionOptions {
  double scale = 1.0;
  int64_t window = 0;         // the last tokens that a token sees, itself included; 0: all
  bool deterministic = true;  // the same inputs give the same bits
};

struct AttentionTape {
  at::Tensor log_sum;            // of a row's scores; its layout is the implementation's
  at::Tensor rng_state, offset;  // what flash and cuDNN pass from one to the other
};

// q [tokens, heads, dim], k and v [tokens, kv_heads, dim]: views with stride 1 in the last dimension. On a GPU in bf16
// or f16 it is flash attention (Dao 2023, arXiv:2307.08691), or where bits may differ and all samples are of one length
// cuDNN's, which takes half the time; elsewhere blocks of ATen products. Returns [tokens, heads, dim].
at::Tensor AttendForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const PackedSamples& samples,
                         const AttentionOptions& options, AttentionTape& tape);

// Writes dq, dk and dv, views like q, k and v.
void AttendBackward(const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const at::Tensor& out, const AttentionTape& tape, const PackedSamples& samples,
                    const AttentionOptions& options, at::Tensor& dq, at::Tensor& dk, at::Tensor& dv);

}  // namespace retort::internal
