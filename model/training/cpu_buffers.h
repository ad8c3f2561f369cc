// Memory of the CPU training path: row-major f32 matrices in one block that is kept between steps.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "model/generation/packed_matrix.h"

namespace retort::internal {

inline constexpr int64_t PaddedWidth(int64_t width) { return (width + 15) / 16 * 16; }

// An odd number of cache lines a row: rows at a power of two apart would share cache sets.
inline constexpr int64_t LeadingDimension(int64_t width) {
  const int64_t padded = PaddedWidth(width);
  return padded / 16 % 2 == 0 ? padded + 16 : padded;
}

// A matrix somewhere; null data where there is none.
struct MatrixView {
  float* data = nullptr;
  int64_t ld = 0;  // elements from row to row

  float* row(int64_t i) const { return data + i * ld; }
  MatrixView From(int64_t row) const { return {data == nullptr ? nullptr : data + row * ld, ld}; }
};

// Hands out matrices one after the other. Without memory it only counts, so that one function can both measure and lay
// out. Contents survive nothing: a grown arena is zeros, a reset one holds what was there.
class Arena {
 public:
  MatrixView Take(int64_t rows, int64_t width) {
    const int64_t ld = LeadingDimension(width);
    const int64_t begin = used_;
    used_ += rows * ld;
    return {base_ == nullptr ? nullptr : base_ + begin, ld};
  }
  int64_t used() const { return used_; }
  void Reset() { used_ = 0; }

  // Makes room for `floats` and some that kernels may read behind the end. Errors: kResourceExhausted.
  absl::Status Reserve(int64_t floats) {
    constexpr int64_t kBehind = 1024;
    const int64_t size_bytes = (floats + kBehind) * static_cast<int64_t>(sizeof(float));
    if (size_bytes <= pages_.size_bytes()) return absl::OkStatus();
    pages_ = PageBuffer();
    base_ = nullptr;
    auto pages = PageBuffer::Allocate(size_bytes, /*huge=*/true);
    if (!pages.ok()) return pages.status();
    pages_ = *std::move(pages);
    base_ = static_cast<float*>(pages_.data());
    return absl::OkStatus();
  }

 private:
  PageBuffer pages_;
  float* base_ = nullptr;
  int64_t used_ = 0;
};

}  // namespace retort::internal
