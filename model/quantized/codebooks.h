// What the codes of bitsandbytes' data types stand for.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

#include "model/quantized/quantized_matrix.h"

namespace retort {

// NormalFloat4 (Dettmers et al. 2023, arXiv:2305.14314): quantiles of a normal distribution, in ascending order.
inline constexpr std::array<float, 16> kNf4Codes = {-1.0f,
                                                    -0.6961928009986877f,
                                                    -0.5250730514526367f,
                                                    -0.39491748809814453f,
                                                    -0.28444138169288635f,
                                                    -0.18477343022823334f,
                                                    -0.09105003625154495f,
                                                    0.0f,
                                                    0.07958029955625534f,
                                                    0.16093020141124725f,
                                                    0.24611230194568634f,
                                                    0.33791524171829224f,
                                                    0.44070982933044434f,
                                                    0.5626170039176941f,
                                                    0.7229568362236023f,
                                                    1.0f};

// A sign, two bits of exponent and one of mantissa, over 12.
inline constexpr std::array<float, 16> kFp4Codes = {
    0.0f,  0.0625f / 12.0f,  8.0f / 12.0f,  1.0f,  4.0f / 12.0f,  6.0f / 12.0f,  2.0f / 12.0f,  3.0f / 12.0f,
    -0.0f, -0.0625f / 12.0f, -8.0f / 12.0f, -1.0f, -4.0f / 12.0f, -6.0f / 12.0f, -2.0f / 12.0f, -3.0f / 12.0f};

// The signed dynamic 8-bit type (Dettmers et al. 2022, arXiv:2110.02861), ascending: [256], f32. Quantises the scales
// of double quantisation.
const at::Tensor& DynamicCodebook();

// The codes of a 4-bit type in the order of their values, and the bounds half-way between neighbours.
struct Ordered4Bit {
  std::array<uint8_t, 16> codes;
  std::array<float, 15> bounds;
};
Ordered4Bit OrderOf(QuantType type);

}  // namespace retort
