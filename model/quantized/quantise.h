// Weights into 4 and 8 bits.
#pragma once

#include <ATen/core/Tensor.h>

#include "absl/status/statusor.h"
#include "model/quantized/quantized_matrix.h"

namespace retort {

struct QuantiseOptions {
  QuantType type = QuantType::kNf4;
  bool double_quant = true;  // of a 4-bit type: its scales in 8 bits
  int64_t block = 64;        // of a 4-bit type: values that share a scale
};

// What bitsandbytes' CPU back-end makes of `weight` ([rows, columns]; f32, bf16 or f16, any device), to the byte; its
// CUDA back-end decides values that lie between two codes to within a rounding error otherwise. The mean of the scales
// is libtorch's, which depends on the number of threads in its last bit. 8 bits: the weight is rounded to f16 first. On
// a GPU the plug-in's kernels are used where they are there. The result is on the weight's device. Errors:
// kInvalidArgument (values that are not finite, or too large for f16 with int8).
absl::StatusOr<QuantizedMatrix> Quantise(const at::Tensor& weight, const QuantiseOptions& options);

}  // namespace retort
