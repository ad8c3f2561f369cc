// What a hand-written LoRA training step does beside its matrix products and its attention: each function is one pass
// over memory, or as near to it as can be.
//
// Matrices are [rows, columns] of f32, bf16 or f16, one type to a call; columns lie side by side (stride 1), rows may
// lie apart and there may be none. What is inside is computed in f32 and rounded once, when it is written. Nothing
// depends on the order of atomic additions: the same inputs give the same bits. Rows that begin at multiples of 16
// bytes are read and written 16 bytes at a time, others value by value: several times as slow (CrossEntropy excepted).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace retort {

// Element by element: what a step of AdamW takes beside the four buffers. As AdamWOptions and AdamWStep (student/)
// have it: in f64, because 1 - beta2 from an f32 beta2 would be wrong in its fifth digit.
struct FusedAdamW {
  double learning_rate = 0.0;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.0;
  double bias_correction1 = 1.0;       // 1 - beta1^step
  double bias_correction2_sqrt = 1.0;  // sqrt(1 - beta2^step)
};

// A block of a matrix and its place in a flat f32 buffer: how A and B travel between an optimizer's buffer and the
// operands of matrix products.
struct FlatBlock {
  int64_t offset = 0;  // in the flat buffer, [rows, columns] contiguous
  int64_t rows = 0;
  int64_t columns = 0;
  at::Tensor matrix;  // [rows, columns], or [columns, rows] where `transposed`; bf16, f16 or f32
  bool transposed = false;
  float scale = 1.0F;  // matrix = scale * flat
};

// Blocks made ready to be copied again and again.
class FlatBlocks {
 public:
  virtual ~FlatBlocks() = default;
  // Every block's matrix from `flat`, an f32 buffer, contiguous, at least as long as where the last block ends.
  virtual void Write(const at::Tensor& flat) const = 0;
};

// Thread-safe; work is queued on the device's current stream. Wrong shapes, types and strides, and launches that fail,
// throw c10::Error. Functions write into tensors that are there; unless it is said, none may overlap another.
class FusedOps {
 public:
  // Those for tensors of a device: CUDA kernels of libretort_train.so where there are some, otherwise ATen.
  static const FusedOps& For(c10::Device device);
  // ATen on any device: what the kernels are measured by.
  static const FusedOps& Reference();
  virtual ~FusedOps() = default;

  // y = x / sqrt(mean(x^2) + eps) * weight, by rows of x [rows, width] (Zhang and Sennrich 2019, arXiv:1910.07467).
  // Here and in the gradient, every matrix may instead be [tokens, heads, width] with strides of its own: norms of
  // heads that lie within wider rows. y may be x.
  virtual void RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps, at::Tensor& y) const = 0;
  // dx = `residual` + the gradient of RmsNorm at `grad`. `residual` may be undefined, and it or grad may be dx itself.
  virtual void RmsNormBackward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, double eps,
                               const at::Tensor& residual, at::Tensor& dx) const = 0;

  // Rotates, in place, the first 2 * cos.size(1) dimensions of each of `heads` heads that lie side by side in x
  // [tokens, heads * head_dim], by cos and sin [tokens, dim / 2], f32; `inverse`: back. Pairs are (i, i + dim / 2). One
  // call can turn queries and keys that share a row: they are heads side by side.
  virtual void Rotate(at::Tensor& x, int64_t heads, const at::Tensor& cos, const at::Tensor& sin,
                      bool inverse) const = 0;

  // y = silu(gate) * up; `gate_up` [rows, 2 * width] is gate, then up.
  virtual void SwiGlu(const at::Tensor& gate_up, at::Tensor& y) const = 0;
  // gate_up becomes its own gradient at `grad` [rows, width]; `y`, where it is defined, SwiGlu's value again (it may be
  // `grad` itself).
  virtual void SwiGluBackward(const at::Tensor& grad, at::Tensor& gate_up, at::Tensor& y) const = 0;

  // losses[i] = -ln softmax(logits[i])[targets[i]], f32; `logits` [rows, vocabulary] become scale times their gradient
  // where `gradient` is set, and stay otherwise. targets: int64, contiguous, valid. A row that has NaN or infinity, or
  // -infinity alone, has NaN for its loss and gradient.
  virtual void CrossEntropy(at::Tensor& logits, const at::Tensor& targets, float scale, bool gradient,
                            at::Tensor& losses) const = 0;

  // out[0] = the sum of squares of x, f32 contiguous, summed in f64 in an order that is the same on every GPU. out:
  // f64, [1].
  virtual void SquareSum(const at::Tensor& x, at::Tensor& out) const = 0;
  // gradient *= min(1, max_norm / (sqrt(square_sum[0]) + 1e-6)) as it is read, without waiting for the device; then one
  // step over f32 buffers, bit by bit AdamWStep's on the CPU. `undecayed`: elements [first, last) that weight decay
  // spares, ascending, none in two. max_norm 0: no clipping (square_sum may be undefined).
  virtual void AdamW(const FusedAdamW& step, const at::Tensor& square_sum, double max_norm,
                     const std::vector<std::pair<int64_t, int64_t>>& undecayed, const at::Tensor& gradient,
                     at::Tensor& parameters, at::Tensor& exp_avg, at::Tensor& exp_avg_sq) const = 0;

  // The matrices must outlive what is returned.
  virtual std::unique_ptr<FlatBlocks> MakeFlatBlocks(std::vector<FlatBlock> blocks) const = 0;
};

}  // namespace retort
