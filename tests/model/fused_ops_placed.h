// Inputs and outputs of the checks of FusedOps: matrices that lie strangely, amid what must not be touched.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

namespace retort::testing {

inline constexpr c10::ScalarType kTypes[] = {at::kFloat, at::kBFloat16, at::kHalf};
inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Values before the first row, and behind each.
struct Layout {
  int64_t offset, padding;
};
inline constexpr Layout kLayouts[] = {{0, 0}, {8, 16}, {0, 1}, {1, 3}};

inline at::Tensor Random(at::IntArrayRef sizes, c10::ScalarType type, double deviation = 1.0) {
  return at::randn(sizes).mul_(deviation).to(type);
}

inline at::Tensor Double(const at::Tensor& tensor) { return tensor.detach().cpu().to(at::kDouble); }

// A matrix amid NaN: what was not written is NaN, and so must stay what lies beside it.
class Placed {
 public:
  Placed(at::IntArrayRef sizes, c10::ScalarType type, Layout layout, c10::Device device)
      : sizes_(sizes.vec()), strides_(sizes.size(), 1), offset_(layout.offset) {
    for (size_t i = sizes_.size() - 1; i > 0; --i) strides_[i - 1] = strides_[i] * sizes_[i] + layout.padding;
    constexpr int64_t kGuard = 9;
    buffer_ = at::full({offset_ + sizes_[0] * strides_[0] + kGuard}, kNaN, at::TensorOptions(device).dtype(type));
    view = View(buffer_);
  }
  Placed(const at::Tensor& values, Layout layout, c10::Device device)
      : Placed(values.sizes(), values.scalar_type(), layout, device) {
    view.copy_(values);
  }

  void ExpectGuardIntact(const std::string& what) const {
    at::Tensor rest = buffer_.clone();
    View(rest).fill_(kNaN);
    EXPECT_TRUE(rest.isnan().all().item<bool>()) << what << ": wrote beside its output";
  }

  at::Tensor view;

 private:
  at::Tensor View(const at::Tensor& buffer) const { return buffer.as_strided(sizes_, strides_, offset_); }

  std::vector<int64_t> sizes_, strides_;
  int64_t offset_;
  at::Tensor buffer_;
};

// A vector that begins `offset` values into its buffer.
inline at::Tensor Vector(const at::Tensor& values, int64_t offset, c10::Device device) {
  at::Tensor buffer = at::full({values.numel() + offset}, 77, values.options().device(device));
  at::Tensor view = buffer.narrow(0, offset, values.numel());
  view.copy_(values);
  return view;
}

}  // namespace retort::testing
