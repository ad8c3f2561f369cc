#include "model/training/cpu_attention.h"

#include <algorithm>
#include <cmath>

namespace retort::internal {

CpuAttention::CpuAttention(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t k_offset, int64_t v_offset)
    : kernels_(ChooseTrainKernels()),
      group_(heads / kv_heads),
      head_dim_(head_dim),
      width_(PaddedWidth(head_dim)),
      k_offset_(k_offset),
      v_offset_(v_offset),
      scale_(static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))) {}

CpuAttention::Scratch CpuAttention::MakeScratch(Arena& arena, int64_t longest) const {
  return {.weights = arena.Take(kQueryRows, longest),
          .d_weights = arena.Take(kQueryRows, longest),
          .keys = arena.Take(head_dim_, longest),
          .values = arena.Take(head_dim_, longest),
          .dk = arena.Take(longest, head_dim_),
          .dv = arena.Take(longest, head_dim_),
          .rows = arena.Take(kQueryRows, head_dim_)};
}

// The task's keys or values as panels of 16 tokens, [head_dim][16] each, zeros behind the last token.
void CpuAttention::Transpose(const AttentionTask& task, const float* first, int64_t ld, MatrixView panels) const {
  for (int64_t token = 0; token < PaddedWidth(task.tokens); ++token) {
    float* out = panels.data + token / 16 * 16 * head_dim_ + token % 16;
    const float* row = first + token * ld;
    for (int64_t i = 0; i < head_dim_; ++i) out[16 * i] = token < task.tokens ? row[i] : 0.0F;
  }
}

void CpuAttention::Forward(const AttentionTask& task, MatrixView qkv, const Scratch& scratch, MatrixView out,
                           MatrixView statistics) const {
  const float* keys = qkv.row(task.first_row) + k_offset_ + task.kv_head * head_dim_;
  const float* values = qkv.row(task.first_row) + v_offset_ + task.kv_head * head_dim_;
  Transpose(task, keys, qkv.ld, scratch.keys);
  for (int64_t first = 0; first < task.tokens; first += kQueryRows) {
    const int64_t rows = std::min(kQueryRows, task.tokens - first);
    const int64_t visible = first + rows;
    const int64_t padded = PaddedWidth(visible);
    for (int64_t head = task.kv_head * group_; head < (task.kv_head + 1) * group_; ++head) {
      const float* q = qkv.row(task.first_row + first) + head * head_dim_;
      kernels_.multiply_f32(q, qkv.ld, rows, scratch.keys.data, 16 * head_dim_, padded / 16, head_dim_,
                            scratch.weights.data, scratch.weights.ld, false);
      for (int64_t i = 0; i < rows; ++i) {
        kernels_.softmax(scratch.weights.row(i), first + i + 1, padded, scale_,
                         statistics.row(task.first_row + first + i) + 2 * head);
      }
      kernels_.multiply_rows(scratch.weights.data, scratch.weights.ld, rows, values, qkv.ld, width_ / 16, visible,
                             scratch.rows.data, scratch.rows.ld, false);
      for (int64_t i = 0; i < rows; ++i) {
        std::copy_n(scratch.rows.row(i), head_dim_, out.row(task.first_row + first + i) + head * head_dim_);
      }
    }
  }
}

void CpuAttention::Backward(const AttentionTask& task, MatrixView qkv, MatrixView statistics, MatrixView d_out,
                            const Scratch& scratch, MatrixView d_qkv) const {
  const int64_t k_column = k_offset_ + task.kv_head * head_dim_;
  const int64_t v_column = v_offset_ + task.kv_head * head_dim_;
  const float* keys = qkv.row(task.first_row) + k_column;
  Transpose(task, keys, qkv.ld, scratch.keys);
  Transpose(task, qkv.row(task.first_row) + v_column, qkv.ld, scratch.values);
  for (int64_t i = 0; i < task.tokens; ++i) {
    std::fill_n(scratch.dk.row(i), width_, 0.0F);
    std::fill_n(scratch.dv.row(i), width_, 0.0F);
  }
  for (int64_t first = 0; first < task.tokens; first += kQueryRows) {
    const int64_t rows = std::min(kQueryRows, task.tokens - first);
    const int64_t visible = first + rows;
    const int64_t padded = PaddedWidth(visible);
    const int64_t top = task.first_row + first;
    for (int64_t head = task.kv_head * group_; head < (task.kv_head + 1) * group_; ++head) {
      const int64_t column = head * head_dim_;
      const float* q = qkv.row(top) + column;
      const float* d_rows = d_out.row(top) + column;
      kernels_.multiply_f32(q, qkv.ld, rows, scratch.keys.data, 16 * head_dim_, padded / 16, head_dim_,
                            scratch.weights.data, scratch.weights.ld, false);
      kernels_.multiply_f32(d_rows, d_out.ld, rows, scratch.values.data, 16 * head_dim_, padded / 16, head_dim_,
                            scratch.d_weights.data, scratch.d_weights.ld, false);
      for (int64_t i = 0; i < rows; ++i) {
        kernels_.softmax_again(scratch.weights.row(i), first + i + 1, padded, scale_,
                               statistics.row(top + i) + 2 * head);
        // From the same products as the weights: a row that sees one token gets exactly no gradient.
        const float along = kernels_.dot(scratch.weights.row(i), scratch.d_weights.row(i), padded);
        kernels_.softmax_backward(scratch.d_weights.row(i), scratch.weights.row(i), padded, along, scale_);
      }
      kernels_.multiply_rows(scratch.d_weights.data, scratch.d_weights.ld, rows, keys, qkv.ld, width_ / 16, visible,
                             scratch.rows.data, scratch.rows.ld, false);
      for (int64_t i = 0; i < rows; ++i) {
        std::copy_n(scratch.rows.row(i), head_dim_, d_qkv.row(top + i) + column);
      }
      kernels_.multiply_transposed(scratch.d_weights.data, scratch.d_weights.ld, visible, q, qkv.ld, width_ / 16, rows,
                                   scratch.dk.data, scratch.dk.ld, true);
      kernels_.multiply_transposed(scratch.weights.data, scratch.weights.ld, visible, d_rows, d_out.ld, width_ / 16,
                                   rows, scratch.dv.data, scratch.dv.ld, true);
    }
  }
  for (int64_t i = 0; i < task.tokens; ++i) {
    std::copy_n(scratch.dk.row(i), head_dim_, d_qkv.row(task.first_row + i) + k_column);
    std::copy_n(scratch.dv.row(i), head_dim_, d_qkv.row(task.first_row + i) + v_column);
  }
}

}  // namespace retort::internal
