// Cross-entropy over a vocabulary, and its gradient in the logits' place.
#pragma once

#include <cfloat>

#include "model/training/fused_rows.cuh"

namespace retort::cuda {

// sum = the sum of e^(x - maximum) over what was seen. The first maximum is finite, so that -infinity is just 0; a row
// of nothing else ends as log(0) + infinity, NaN. NaN is not seen by the maximum, but stays in the sum; so does
// infinity, whose difference with itself is NaN.
struct SoftmaxTotals {
  float maximum = -FLT_MAX;
  float sum = 0.0f;
};

template <typename T, int kCount>
__device__ void AddToSoftmax(const float (&values)[kCount], SoftmaxTotals& totals) {
  float maximum = totals.maximum;
#pragma unroll
  for (int j = 0; j < kCount; ++j) maximum = fmaxf(maximum, values[j]);
  float sum = totals.sum * Exp<T>(totals.maximum - maximum);
#pragma unroll
  for (int j = 0; j < kCount; ++j) sum += Exp<T>(values[j] - maximum);
  totals = {maximum, sum};
}

template <typename T>
__device__ SoftmaxTotals Together(const SoftmaxTotals& a, const SoftmaxTotals& b) {
  const float maximum = fmaxf(a.maximum, b.maximum);
  return {maximum, a.sum * Exp<T>(a.maximum - maximum) + b.sum * Exp<T>(b.maximum - maximum)};
}

// The totals of the first lane's tree over the warp, in every lane.
template <typename T>
__device__ SoftmaxTotals TogetherOverWarp(SoftmaxTotals totals) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const SoftmaxTotals other = {__shfl_xor_sync(kAllLanes, totals.maximum, distance),
                                 __shfl_xor_sync(kAllLanes, totals.sum, distance)};
    totals = Together<T>(totals, other);
  }
  return {__shfl_sync(kAllLanes, totals.maximum, 0), __shfl_sync(kAllLanes, totals.sum, 0)};
}

constexpr int kHeadThreads = 1024;

// A block has a row. The first `cached` packs of it stay in shared memory (each thread reads back what it wrote), so
// that the gradient reads the rest alone again, which is still in L2. Rows may begin anywhere: what lies before the
// first multiple of 16 bytes and behind the last is done value by value.
template <typename T>
__global__ void __launch_bounds__(kHeadThreads)
    CrossEntropy(T* logits, int64_t stride, int64_t rows, int vocabulary, const int64_t* __restrict__ targets,
                 float scale, bool gradient, int cached, float* __restrict__ losses) {
  using A = Access<T, true>;
  using Raw = typename A::Raw;
  extern __shared__ uint4 cache_bytes[];
  Raw* cache = reinterpret_cast<Raw*>(cache_bytes);
  __shared__ SoftmaxTotals of_warps[kHeadThreads / kWarp];
  constexpr int kAtOnce = 4;
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    T* x = logits + row * stride;
    const int behind = static_cast<int>(reinterpret_cast<uintptr_t>(x) % sizeof(Raw));
    const int head = min(vocabulary, behind == 0 ? 0 : static_cast<int>((sizeof(Raw) - behind) / sizeof(T)));
    const int packs = (vocabulary - head) / A::kCount;
    const int loose = vocabulary - packs * A::kCount;  // before and behind the packs; fewer than threads
    const int loose_column = thread < head ? thread : thread + packs * A::kCount;
    T* body = x + head;
    const int target = static_cast<int>(targets[row]);
    const float at_target = Wide(x[target]);  // read before any thread writes: there is a barrier between

    SoftmaxTotals totals;
    float loose_value[1] = {0.0f};
    if (thread < loose) {
      loose_value[0] = Wide(x[loose_column]);
      AddToSoftmax<T>(loose_value, totals);
    }
    for (int first = thread; first < packs; first += kAtOnce * threads) {
      Raw raw[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int pack = first + i * threads;
        if (pack < packs) raw[i] = A::Load(body + static_cast<int64_t>(pack) * A::kCount);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int pack = first + i * threads;
        if (pack >= packs) continue;
        float values[A::kCount];
        A::Unpack(raw[i], values);
        AddToSoftmax<T>(values, totals);
        if (pack < cached) cache[pack] = raw[i];
      }
    }
    totals = TogetherOverWarp<T>(totals);
    if (thread % kWarp == 0) of_warps[thread / kWarp] = totals;
    __syncthreads();
    totals = {};
    if (thread % kWarp < threads / kWarp) totals = of_warps[thread % kWarp];
    totals = TogetherOverWarp<T>(totals);
    if (thread == 0) losses[row] = (totals.maximum - at_target) + logf(totals.sum);

    if (gradient) {
      const float inverse = 1.0f / totals.sum;
      const auto slope = [&](float value, bool is_target) {
        const float probability = Exp<T>(value - totals.maximum) * inverse;
        return scale * (is_target ? probability - 1.0f : probability);
      };
      if (thread < loose) x[loose_column] = Narrow<T>(slope(loose_value[0], loose_column == target));
      for (int first = thread; first < packs; first += kAtOnce * threads) {
        Raw raw[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int pack = first + i * threads;
          if (pack >= packs) continue;
          raw[i] = pack < cached ? cache[pack] : A::Load(body + static_cast<int64_t>(pack) * A::kCount);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const int pack = first + i * threads;
          if (pack >= packs) continue;
          const int here = target - head - pack * A::kCount;  // the target's place in this pack, if it is in it
          float values[A::kCount];
          A::Unpack(raw[i], values);
#pragma unroll
          for (int j = 0; j < A::kCount; ++j) values[j] = slope(values[j], j == here);
          A::Store(body + static_cast<int64_t>(pack) * A::kCount, A::Pack(values));
        }
      }
    }
    __syncthreads();  // before the next row's totals
  }
}

}  // namespace retort::cuda
