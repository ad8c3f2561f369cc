// LoRA dropout whose mask is a function of names, not of a generator's state.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>

namespace retort {

// [rows, columns], f32 on `device`: 0 with probability `p`, else 1 / (1 - p). Element e (row-major) is kept when word
// e % 4 of the Philox block at (key, position e / 4, stream) as a number in [0, 1) is at least p: the same bits on
// every device and for any number of threads.
at::Tensor DropoutMask(uint64_t key, uint64_t stream, double p, int64_t rows, int64_t columns, c10::Device device);

// Elements [begin, begin + count) of such a mask's row-major order.
void FillDropoutMask(uint64_t key, uint64_t stream, double p, int64_t begin, int64_t count, float* out);

}  // namespace retort
