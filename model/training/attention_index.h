// What cuDNN wants to know of ragged samples, worked out on the device.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace retort::internal {

inline constexpr int kMostStrides = 9;

struct AttentionIndex {
  const int32_t* cumulative = nullptr;  // [count + 1], from the first sample on
  int32_t count = 0;
  int32_t padded = 0;  // samples, those after `count` being empty
  int32_t strides = 0;
  int64_t stride[kMostStrides] = {};  // elements a token
  bool wide = false;                  // offsets are int64, else int32
  int32_t* lengths = nullptr;         // out [padded]
  void* offsets = nullptr;  // out [strides, pitch]: element of each sample's first token, counted from the first sample
  int64_t pitch = 0;        // at least padded + 1
};

cudaError_t FillIndex(const AttentionIndex& index, cudaStream_t stream);

}  // namespace retort::internal
