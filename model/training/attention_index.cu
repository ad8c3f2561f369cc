#include "model/training/attention_index.h"

namespace retort::internal {
namespace {

template <typename Offset>
__global__ void Fill(AttentionIndex index) {
  const int32_t begin = index.cumulative[0];
  Offset* offsets = static_cast<Offset*>(index.offsets);
  for (int32_t i = threadIdx.x; i <= index.padded; i += blockDim.x) {
    const int32_t at = index.cumulative[min(i, index.count)];
    if (i < index.padded) index.lengths[i] = i < index.count ? index.cumulative[i + 1] - at : 0;
    for (int32_t s = 0; s < index.strides; ++s) {
      offsets[s * index.pitch + i] = static_cast<Offset>((at - begin) * index.stride[s]);
    }
  }
}

}  // namespace

cudaError_t FillIndex(const AttentionIndex& index, cudaStream_t stream) {
  constexpr int kThreads = 128;
  if (index.wide) {
    Fill<int64_t><<<1, kThreads, 0, stream>>>(index);
  } else {
    Fill<int32_t><<<1, kThreads, 0, stream>>>(index);
  }
  return cudaGetLastError();
}

}  // namespace retort::internal
