// A weight matrix in the panel layout of CpuKernels, and the memory it lies in.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "model/generation/thread_pool.h"

namespace retort::internal {

// Zeroed pages straight from the kernel, in huge pages where `huge` and it has them. Pages are taken when first
// touched.
class PageBuffer {
 public:
  PageBuffer() = default;
  ~PageBuffer();
  PageBuffer(PageBuffer&& other) noexcept;
  PageBuffer& operator=(PageBuffer&& other) noexcept;
  // Errors: kResourceExhausted (says how much was asked for).
  static absl::StatusOr<PageBuffer> Allocate(int64_t size_bytes, bool huge);

  void* data() const { return data_; }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  void* data_ = nullptr;
  int64_t size_bytes_ = 0;
};

// Immutable once packed.
class PackedMatrix {
 public:
  // Packs the rows of `parts`, each [out_features, in_features] of f32, bf16 or f16 on the CPU, below one another. With
  // `interleave` (two parts of equal shape) their panels alternate. Kept as bf16 when every value is exactly
  // a bf16 (half the memory traffic, the same results), else as f32. Errors: kResourceExhausted.
  static absl::StatusOr<PackedMatrix> Pack(const std::vector<at::Tensor>& parts, bool interleave, ThreadPool& pool);

  int64_t in_features() const { return in_features_; }
  int64_t out_features() const { return out_features_; }
  int64_t panels() const { return panels_; }
  bool bf16() const { return bf16_; }
  int64_t panel_stride() const { return in_features_ * 16; }  // elements
  const void* panel(int64_t index) const;
  // Row `row` of a matrix that was packed from one part, widened to f32.
  void UnpackRow(int64_t row, float* out) const;

 private:
  int64_t in_features_ = 0;
  int64_t out_features_ = 0;
  int64_t panels_ = 0;
  bool bf16_ = false;
  PageBuffer pages_;
};

}  // namespace retort::internal
