// The kernels for quantised matrices on a GPU, which live in a plug-in library (libretort_quant.so) that is opened when
// first asked for.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/quantized/quantise.h"
#include "model/quantized/quantized_matrix.h"

namespace retort {

// Each returns false, and has done nothing, where the plug-in is not there: the caller then goes through ATen. They
// queue work on the device's current stream. A launch that fails throws c10::Error.

// `out` [rows, columns], f32, bf16 or f16, contiguous, on the matrix's GPU.
bool DequantiseOnGpu(const QuantizedMatrix& matrix, at::Tensor& out);

// `weight` [rows, columns], contiguous, f32, bf16 or f16. `codes` and `scales` as QuantizedMatrix has them before
// double quantisation. A scale that is not finite says that the block's values were not.
bool Quantise4BitOnGpu(const at::Tensor& weight, const QuantiseOptions& options, at::Tensor& codes, at::Tensor& scales);

// `half` [rows, columns], f16, contiguous, finite.
bool QuantiseRowsOnGpu(const at::Tensor& half, at::Tensor& codes, at::Tensor& scales);

}  // namespace retort
