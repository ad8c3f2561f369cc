#include "model/quantized/codebooks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linspace.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace retort {
namespace {

// As bitsandbytes' create_dynamic_map makes it: seven decades, each cut twice as fine as the one below.
at::Tensor MakeDynamicCodebook() {
  std::vector<float> codes = {0.0f, 1.0f};
  for (int decade = 0; decade < 7; ++decade) {
    const int64_t items = int64_t{1} << decade;
    const at::Tensor boundaries = at::linspace(0.1, 1.0, items + 1, at::kFloat);
    const at::Tensor means = (boundaries.narrow(0, 0, items) + boundaries.narrow(0, 1, items)).div(2.0);
    // A double, as Python's 10 ** -6 is.
    const at::Tensor scaled = means.mul(std::pow(10.0, decade - 6));
    const float* values = scaled.const_data_ptr<float>();
    for (int64_t i = 0; i < items; ++i) {
      codes.push_back(values[i]);
      codes.push_back(-values[i]);
    }
  }
  std::sort(codes.begin(), codes.end());
  return at::from_blob(codes.data(), {256}, at::kFloat).clone();
}

}  // namespace

const at::Tensor& DynamicCodebook() {
  static const at::Tensor codebook = MakeDynamicCodebook();
  return codebook;
}

Ordered4Bit OrderOf(QuantType type) {
  const std::array<float, 16>& values = CodesOf(type);
  Ordered4Bit ordered;
  std::iota(ordered.codes.begin(), ordered.codes.end(), uint8_t{0});
  // FP4 has zero twice: the one without a sign is taken to be the lower.
  std::stable_sort(ordered.codes.begin(), ordered.codes.end(),
                   [&](uint8_t a, uint8_t b) { return values[a] < values[b]; });
  for (size_t i = 0; i < ordered.bounds.size(); ++i) {
    ordered.bounds[i] = (values[ordered.codes[i]] + values[ordered.codes[i + 1]]) / 2.0f;
  }
  return ordered;
}

}  // namespace retort
