// DeepSeek's float8 weights: e4m3 values with one scale for each 128 x 128 block (DeepSeek-V3, arXiv:2412.19437,
// section 3.3.2).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include "absl/status/statusor.h"

namespace retort {

inline constexpr int64_t kFp8Block = 128;

// weight [rows, columns], float8_e4m3fn; scale_inv [ceil(rows / 128), ceil(columns / 128)], f32: what a block's values
// are multiplied by. Computed in f32, rounded once to `dtype`. Errors: kInvalidArgument (shapes that contradict each
// other).
absl::StatusOr<at::Tensor> DequantiseBlockFp8(const at::Tensor& weight, const at::Tensor& scale_inv,
                                              c10::ScalarType dtype);

}  // namespace retort
