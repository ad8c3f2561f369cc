// What CUDA kernels share: values of three types, in 16-byte vectors or one by one, and the launch's surroundings.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace retort::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <typename T>
__device__ float Wide(T value);
template <>
__device__ inline float Wide<float>(float value) {
  return value;
}
template <>
__device__ inline float Wide<__nv_bfloat16>(__nv_bfloat16 value) {
  return __bfloat162float(value);
}
template <>
__device__ inline float Wide<__half>(__half value) {
  return __half2float(value);
}

template <typename T>
__device__ T Narrow(float value);
template <>
__device__ inline float Narrow<float>(float value) {
  return value;
}
template <>
__device__ inline __nv_bfloat16 Narrow<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ inline __half Narrow<__half>(float value) {
  return __float2half_rn(value);
}

// The two values of a 32-bit word, the first in its low half.
template <typename T>
__device__ float2 WidePair(uint32_t word);
template <>
__device__ inline float2 WidePair<__nv_bfloat16>(uint32_t word) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}
template <>
__device__ inline float2 WidePair<__half>(uint32_t word) {
  return __half22float2(*reinterpret_cast<const __half2*>(&word));
}

template <typename T>
__device__ uint32_t NarrowPair(float first, float second);
template <>
__device__ inline uint32_t NarrowPair<__nv_bfloat16>(float first, float second) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
template <>
__device__ inline uint32_t NarrowPair<__half>(float first, float second) {
  const __half2 pair = __floats2half2_rn(first, second);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// 16 bytes to device memory. An assignment of a uint4 that was put together from words often becomes four stores.
__device__ inline void StoreWords(void* to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
}

// How a thread reads and writes its share of a row, a pack: 16 bytes at an address that is a multiple of them, or one
// value at any.
template <typename T, bool kVector>
struct Access {
  using Raw = T;
  static constexpr int kCount = 1;
  static __device__ Raw Load(const T* from) { return *from; }
  static __device__ void Store(T* to, Raw raw) { *to = raw; }
  static __device__ void Unpack(Raw raw, float* values) { values[0] = Wide(raw); }
  static __device__ Raw Pack(const float* values) { return Narrow<T>(values[0]); }
};

template <typename T>
struct Access<T, true> {
  using Raw = uint4;
  static constexpr int kCount = 8;
  static __device__ Raw Load(const T* from) { return *reinterpret_cast<const uint4*>(from); }
  static __device__ void Store(T* to, Raw raw) { StoreWords(to, raw.x, raw.y, raw.z, raw.w); }
  static __device__ void Unpack(Raw raw, float* values) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = WidePair<T>(words[i]);
      values[2 * i] = pair.x;
      values[2 * i + 1] = pair.y;
    }
  }
  static __device__ Raw Pack(const float* values) {
    return {NarrowPair<T>(values[0], values[1]), NarrowPair<T>(values[2], values[3]),
            NarrowPair<T>(values[4], values[5]), NarrowPair<T>(values[6], values[7])};
  }
};

template <>
struct Access<float, true> {
  using Raw = float4;
  static constexpr int kCount = 4;
  static __device__ Raw Load(const float* from) { return *reinterpret_cast<const float4*>(from); }
  static __device__ void Store(float* to, Raw raw) {
    StoreWords(to, __float_as_uint(raw.x), __float_as_uint(raw.y), __float_as_uint(raw.z), __float_as_uint(raw.w));
  }
  static __device__ void Unpack(Raw raw, float* values) {
    values[0] = raw.x;
    values[1] = raw.y;
    values[2] = raw.z;
    values[3] = raw.w;
  }
  static __device__ Raw Pack(const float* values) { return {values[0], values[1], values[2], values[3]}; }
};

template <typename T>
constexpr int kVectorCount = Access<T, true>::kCount;

// Sums over kLanes neighbours, the same in all of them; over more than a warp, kLanes are the whole block and `shared`
// has kValues floats for each warp. The order of additions is fixed.
template <int kLanes, int kValues>
__device__ void SumOver(float (&values)[kValues], float* shared) {
#pragma unroll
  for (int distance = (kLanes < kWarp ? kLanes : kWarp) / 2; distance > 0; distance /= 2) {
#pragma unroll
    for (int v = 0; v < kValues; ++v) values[v] += __shfl_xor_sync(kAllLanes, values[v], distance);
  }
  if constexpr (kLanes > kWarp) {
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp * kValues + v] = values[v];
      values[v] = 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kLanes / kWarp; ++i) {
#pragma unroll
      for (int v = 0; v < kValues; ++v) values[v] += shared[i * kValues + v];
    }
    __syncthreads();  // before the next sum's writes
  }
}

// Makes `device` current for the time of a launch.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    error_ = cudaGetDevice(&before_);
    if (error_ != cudaSuccess || before_ == device) return;
    error_ = cudaSetDevice(device);
    changed_ = error_ == cudaSuccess;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t error_ = cudaSuccess;
};

inline bool Aligned(const void* pointer, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

}  // namespace retort::cuda
