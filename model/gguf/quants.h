// Between float arrays and ggml's tensor types.
//
// Bit for bit what ggml's reference code computes (dequantize_row_*, quantize_row_*_ref): these files are compiled
// without fused multiply-adds, and sums run in the reference's order.
#pragma once

#include <cstdint>

#include "model/gguf/types.h"

namespace retort::gguf {

// F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K.
bool CanDequantise(TensorType type);
// `count` values (a multiple of the block) from `source`, which need not be aligned. Call only where CanDequantise.
void Dequantise(TensorType type, const void* source, int64_t count, float* target);

// F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K.
bool CanQuantise(TensorType type);
// The other way; `source` must be finite (see AllFinite), for a NaN has no place on a quantised scale.
void Quantise(TensorType type, const float* source, int64_t count, void* target);

// Whether each value is finite, and remains so in `type`: halves, and scales that are halves, end at 65504.
bool AllFinite(TensorType type, const float* values, int64_t count);

float HalfToFloat(uint16_t half);
uint16_t FloatToHalf(float value);      // to nearest, ties to even
uint16_t FloatToBfloat16(float value);  // to nearest, ties to even; NaN stays NaN

}  // namespace retort::gguf
