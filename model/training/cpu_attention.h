// Causal self-attention with grouped queries on the CPU training path.
#pragma once

#include <cstdint>

#include "model/kernels/train_kernels.h"
#include "model/training/cpu_buffers.h"

namespace retort::internal {

// One sequence and one head of keys and values, with the queries that share it. Rows are the sequence's.
struct AttentionTask {
  int64_t first_row = 0;
  int64_t tokens = 0;
  int64_t kv_head = 0;
};

class CpuAttention {
 public:
  // `k_offset` and `v_offset`: columns of the keys and values in a row that begins with the queries.
  CpuAttention(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t k_offset, int64_t v_offset);

  // One thread's work space for sequences of up to `longest` tokens.
  struct Scratch {
    MatrixView weights, d_weights;  // [kQueryRows, longest]
    MatrixView keys, values;        // [head_dim, longest]: transposed, as panels
    MatrixView dk, dv;              // [longest, head_dim]
    MatrixView rows;                // [kQueryRows, head_dim]
  };
  Scratch MakeScratch(Arena& arena, int64_t longest) const;

  // qkv: rotated. Writes `out` [tokens, heads * head_dim] and `statistics` [tokens, 2 * heads].
  void Forward(const AttentionTask& task, MatrixView qkv, const Scratch& scratch, MatrixView out,
               MatrixView statistics) const;
  // Writes the gradient of `qkv`.
  void Backward(const AttentionTask& task, MatrixView qkv, MatrixView statistics, MatrixView d_out,
                const Scratch& scratch, MatrixView d_qkv) const;

 private:
  static constexpr int64_t kQueryRows = 32;
  void Transpose(const AttentionTask& task, const float* first, int64_t ld, MatrixView panels) const;

  const TrainKernels& kernels_;
  const int64_t group_, head_dim_, width_, k_offset_, v_offset_;
  const float scale_;
};

}  // namespace retort::internal
