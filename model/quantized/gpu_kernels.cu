// The kernels of libretort_quant.so. Each computes what the CPU code computes, rounding by rounding: products and sums
// are rounded apart, divisions are exact.
#include "model/kernels/cuda_common.cuh"
#include "model/quantized/gpu_plugin.h"

namespace {

using retort::cuda::Aligned;
using retort::cuda::kAllLanes;
using retort::cuda::kWarp;
using retort::cuda::Narrow;
using retort::cuda::OnDevice;
using retort::cuda::Wide;

constexpr int kThreads = 256;
// Values that a thread takes at a time: 16 bytes of the 16-bit types.
constexpr int kPack = 8;
constexpr float kInt8Step = 7.874015718698502e-3f;
constexpr float kSmallestScale = 1e-38f;

template <typename T>
struct alignas(16) Pack {
  T values[kPack];
};

template <typename T>
__device__ void Store(T* to, const Pack<T>& pack) {
  const auto* from = reinterpret_cast<const uint4*>(&pack);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Pack<T>) / sizeof(uint4)); ++i) reinterpret_cast<uint4*>(to)[i] = from[i];
}

template <typename T>
__device__ Pack<T> Load(const T* from) {
  Pack<T> pack;
  auto* to = reinterpret_cast<uint4*>(&pack);
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Pack<T>) / sizeof(uint4)); ++i) {
    to[i] = reinterpret_cast<const uint4*>(from)[i];
  }
  return pack;
}

// i / size, by a shift where `shift` >= 0.
__device__ int64_t Quotient(int64_t i, int64_t size, int shift) { return shift >= 0 ? i >> shift : i / size; }

struct Shifts {
  int block, nested;
};

__device__ float ScaleOf(const RetortQuant4Bit& matrix, const Shifts& shifts, int64_t value) {
  const int64_t block = Quotient(value, matrix.block, shifts.block);
  if (matrix.nested_scales == nullptr) return static_cast<const float*>(matrix.scales)[block];
  const float code = matrix.nested_codebook[static_cast<const uint8_t*>(matrix.scales)[block]];
  const float outer = matrix.nested_scales[Quotient(block, matrix.nested_block, shifts.nested)];
  return __fadd_rn(__fmul_rn(code, outer), matrix.nested_offset);
}

// Eight values a thread, which share a scale. `packs` = count / 8; the values behind them are the first thread's.
template <typename T>
__global__ void Dequantise4Bit(const __grid_constant__ RetortQuant4Bit matrix, Shifts shifts, int64_t packs, T* out) {
  __shared__ float table[16];
  if (threadIdx.x < 16) table[threadIdx.x] = matrix.table[threadIdx.x];
  __syncthreads();
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
#pragma unroll 4
  for (int64_t i = first; i < packs; i += step) {
    const uint32_t codes = reinterpret_cast<const uint32_t*>(matrix.codes)[i];
    const float scale = ScaleOf(matrix, shifts, i * kPack);
    Pack<T> pack;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      const uint32_t code = codes >> (8 * (j / 2) + (j % 2 == 0 ? 4 : 0)) & 0xF;
      pack.values[j] = Narrow<T>(__fmul_rn(table[code], scale));
    }
    Store(out + i * kPack, pack);
  }
  if (first == 0) {
    for (int64_t i = packs * kPack; i < matrix.count; ++i) {
      const uint32_t code = matrix.codes[i / 2] >> (i % 2 == 0 ? 4 : 0) & 0xF;
      out[i] = Narrow<T>(__fmul_rn(table[code], ScaleOf(matrix, shifts, i)));
    }
  }
}

// Any block: a value a thread.
template <typename T>
__global__ void Dequantise4BitAnyBlock(const __grid_constant__ RetortQuant4Bit matrix, Shifts shifts, T* out) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < matrix.count; i += step) {
    const uint32_t code = matrix.codes[i / 2] >> (i % 2 == 0 ? 4 : 0) & 0xF;
    out[i] = Narrow<T>(__fmul_rn(matrix.table[code], ScaleOf(matrix, shifts, i)));
  }
}

// A row after the other to each group of threads.
template <typename T>
__global__ void DequantiseInt8(const int8_t* codes, const float* scales, int64_t rows, int64_t columns, T* out) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const float scale = scales[row];
    const int8_t* from = codes + row * columns;
    T* to = out + row * columns;
    if (columns % kPack == 0) {
      for (int64_t i = threadIdx.x; i < columns / kPack; i += blockDim.x) {
        const uint2 raw = reinterpret_cast<const uint2*>(from)[i];
        const auto* eight = reinterpret_cast<const int8_t*>(&raw);
        Pack<T> pack;
#pragma unroll
        for (int j = 0; j < kPack; ++j) {
          pack.values[j] = Narrow<T>(__fmul_rn(__fmul_rn(static_cast<float>(eight[j]), scale), kInt8Step));
        }
        Store(to + i * kPack, pack);
      }
    } else {
      for (int64_t i = threadIdx.x; i < columns; i += blockDim.x) {
        to[i] = Narrow<T>(__fmul_rn(__fmul_rn(static_cast<float>(from[i]), scale), kInt8Step));
      }
    }
  }
}

struct Bounds4Bit {
  float bounds[16];  // the last is infinite
  uint8_t ordered[16];
};

__device__ uint32_t CodeOf(const float* bounds, const uint32_t* ordered, float value) {
  const float clamped = fminf(fmaxf(value, -1.0f), 1.0f);
  int place = clamped > bounds[7] ? 8 : 0;
  place += clamped > bounds[place + 3] ? 4 : 0;
  place += clamped > bounds[place + 1] ? 2 : 0;
  place += clamped > bounds[place] ? 1 : 0;
  return ordered[place];
}

__device__ void LoadBounds(const Bounds4Bit& table, float* bounds, uint32_t* ordered) {
  if (threadIdx.x < 16) {
    bounds[threadIdx.x] = table.bounds[threadIdx.x];
    ordered[threadIdx.x] = table.ordered[threadIdx.x];
  }
  __syncthreads();
}

// The largest magnitude, or a NaN where a value is not finite: fmaxf alone would pass over it.
__device__ float Larger(float a, float b) { return a != a || b != b ? __int_as_float(0x7fffffff) : fmaxf(a, b); }

__device__ float Magnitude(float value) { return isfinite(value) ? fabsf(value) : __int_as_float(0x7fffffff); }

// Whole blocks of 32 to 256 values, eight a thread: `lanes` = block / 8 neighbours share one. `packs` = those of whole
// blocks.
template <typename T>
__global__ void Quantise4Bit(const T* values, int64_t packs, int lanes, const __grid_constant__ Bounds4Bit table,
                             uint32_t* codes, float* scales) {
  __shared__ float bounds[16];
  __shared__ uint32_t ordered[16];
  LoadBounds(table, bounds, ordered);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  // All lanes go on together: they exchange what they found.
  const int64_t rounded = (packs + kWarp - 1) / kWarp * kWarp;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rounded; i += step) {
    float wide[kPack];
    float largest = 0.0f;
    if (i < packs) {
      const Pack<T> pack = Load(values + i * kPack);
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        wide[j] = Wide(pack.values[j]);
        largest = Larger(largest, Magnitude(wide[j]));
      }
    }
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      largest = Larger(largest, __shfl_xor_sync(kAllLanes, largest, distance));
    }
    if (i >= packs) continue;
    const float inverse = __fdiv_rn(1.0f, fmaxf(largest, kSmallestScale));
    uint32_t packed = 0;
#pragma unroll
    for (int j = 0; j < kPack; ++j) {
      packed |= CodeOf(bounds, ordered, __fmul_rn(wide[j], inverse)) << (8 * (j / 2) + (j % 2 == 0 ? 4 : 0));
    }
    codes[i] = packed;
    if (i % lanes == 0) scales[i / lanes] = largest;
  }
}

// Any even block, also the last that is cut off: a warp each. `first` is the first block to do.
template <typename T>
__global__ void Quantise4BitAnyBlock(const T* values, int64_t count, int64_t block, int64_t first,
                                     const __grid_constant__ Bounds4Bit table, uint8_t* codes, float* scales) {
  __shared__ float bounds[16];
  __shared__ uint32_t ordered[16];
  LoadBounds(table, bounds, ordered);
  const int lane = threadIdx.x % kWarp;
  const int64_t blocks = (count + block - 1) / block;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (blockDim.x / kWarp);
  for (int64_t b = first + static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp; b < blocks;
       b += step) {
    const int64_t begin = b * block;
    const int64_t length = min(block, count - begin);
    const bool whole = length == block;
    float largest = 0.0f;
    for (int64_t i = lane; i < length; i += kWarp) largest = Larger(largest, Magnitude(Wide(values[begin + i])));
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      largest = Larger(largest, __shfl_xor_sync(kAllLanes, largest, distance));
    }
    if (!whole && largest < kSmallestScale) largest = kSmallestScale;
    const float inverse = __fdiv_rn(1.0f, fmaxf(largest, kSmallestScale));
    const auto code = [&](int64_t i) -> uint32_t {
      if (i >= length) return CodeOf(bounds, ordered, 0.0f);
      const float value = Wide(values[begin + i]);
      return CodeOf(bounds, ordered, whole ? __fmul_rn(value, inverse) : __fdiv_rn(value, largest));
    };
    for (int64_t i = 2 * lane; i < length; i += 2 * kWarp) {
      codes[(begin + i) / 2] = static_cast<uint8_t>(code(i) << 4 | code(i + 1));
    }
    if (lane == 0) scales[b] = largest;
  }
}

__device__ int8_t RowCode(__half value, float inverse) {
  return static_cast<int8_t>(rintf(__fmul_rn(__half2float(value), inverse)));
}

// A row after the other to each group of threads.
__global__ void QuantiseInt8(const __half* values, int64_t rows, int64_t columns, int8_t* codes, float* scales) {
  __shared__ float found[kThreads / kWarp];
  const bool packed = columns % kPack == 0;
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const __half* from = values + row * columns;
    int8_t* to = codes + row * columns;
    float largest = 0.0f;
    if (packed) {
      for (int64_t i = threadIdx.x; i < columns / kPack; i += blockDim.x) {
        const Pack<__half> pack = Load(from + i * kPack);
#pragma unroll
        for (int j = 0; j < kPack; ++j) largest = fmaxf(largest, fabsf(__half2float(pack.values[j])));
      }
    } else {
      for (int64_t i = threadIdx.x; i < columns; i += blockDim.x)
        largest = fmaxf(largest, fabsf(__half2float(from[i])));
    }
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, distance));
    }
    if (threadIdx.x % kWarp == 0) found[threadIdx.x / kWarp] = largest;
    __syncthreads();
    for (int i = 0; i < kThreads / kWarp; ++i) largest = fmaxf(largest, found[i]);
    __syncthreads();
    if (threadIdx.x == 0) scales[row] = largest;
    const float inverse = largest == 0.0f ? 0.0f : __fmul_rn(__fdiv_rn(1.0f, largest), 127.0f);
    if (packed) {
      for (int64_t i = threadIdx.x; i < columns / kPack; i += blockDim.x) {
        const Pack<__half> pack = Load(from + i * kPack);
        uint2 raw;
        auto* eight = reinterpret_cast<int8_t*>(&raw);
#pragma unroll
        for (int j = 0; j < kPack; ++j) eight[j] = RowCode(pack.values[j], inverse);
        reinterpret_cast<uint2*>(to)[i] = raw;
      }
    } else {
      for (int64_t i = threadIdx.x; i < columns; i += blockDim.x) to[i] = RowCode(from[i], inverse);
    }
  }
}

int ShiftOf(int64_t size) {
  for (int shift = 0; shift < 62; ++shift) {
    if (int64_t{1} << shift == size) return shift;
  }
  return -1;
}

// Enough groups of threads to fill any GPU several times over; the loops do the rest.
int Groups(int64_t threads) {
  const int64_t groups = (threads + kThreads - 1) / kThreads;
  constexpr int64_t kMost = 132 * 32;
  return static_cast<int>(groups < 1 ? 1 : groups > kMost ? kMost : groups);
}

template <typename T>
void LaunchDequantise4Bit(const RetortQuant4Bit& matrix, T* out, cudaStream_t stream) {
  const Shifts shifts = {ShiftOf(matrix.block), matrix.nested_scales == nullptr ? -1 : ShiftOf(matrix.nested_block)};
  if (matrix.block % kPack == 0 && Aligned(matrix.codes, 4) && Aligned(out, 16)) {
    const int64_t packs = matrix.count / kPack;
    Dequantise4Bit<T><<<Groups((packs + 3) / 4), kThreads, 0, stream>>>(matrix, shifts, packs, out);
  } else {
    Dequantise4BitAnyBlock<T><<<Groups(matrix.count), kThreads, 0, stream>>>(matrix, shifts, out);
  }
}

template <typename T>
void LaunchQuantise4Bit(const T* values, int64_t count, int64_t block, const Bounds4Bit& table, uint8_t* codes,
                        float* scales, cudaStream_t stream) {
  const int64_t blocks = (count + block - 1) / block;
  int64_t done = 0;
  if (block >= 32 && block <= 256 && ShiftOf(block) >= 0 && Aligned(values, 16) && Aligned(codes, 4)) {
    done = count / block;
    const int64_t packs = done * block / kPack;
    if (packs > 0) {
      Quantise4Bit<T><<<Groups(packs), kThreads, 0, stream>>>(values, packs, static_cast<int>(block / kPack), table,
                                                              reinterpret_cast<uint32_t*>(codes), scales);
    }
  }
  if (done < blocks) {
    Quantise4BitAnyBlock<T>
        <<<Groups((blocks - done) * kWarp), kThreads, 0, stream>>>(values, count, block, done, table, codes, scales);
  }
}

int DequantiseFourBits(int device, const RetortQuant4Bit* matrix, void* out, int out_type, void* stream) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  const auto queue = static_cast<cudaStream_t>(stream);
  if (out_type == RETORT_QUANT_BF16) {
    LaunchDequantise4Bit(*matrix, static_cast<__nv_bfloat16*>(out), queue);
  } else if (out_type == RETORT_QUANT_F16) {
    LaunchDequantise4Bit(*matrix, static_cast<__half*>(out), queue);
  } else {
    LaunchDequantise4Bit(*matrix, static_cast<float*>(out), queue);
  }
  return cudaGetLastError();
}

int DequantiseEightBits(int device, const int8_t* codes, const float* scales, int64_t rows, int64_t columns, void* out,
                        int out_type, void* stream) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  const auto queue = static_cast<cudaStream_t>(stream);
  const int groups = Groups(rows * kThreads);
  if (out_type == RETORT_QUANT_BF16) {
    DequantiseInt8<<<groups, kThreads, 0, queue>>>(codes, scales, rows, columns, static_cast<__nv_bfloat16*>(out));
  } else if (out_type == RETORT_QUANT_F16) {
    DequantiseInt8<<<groups, kThreads, 0, queue>>>(codes, scales, rows, columns, static_cast<__half*>(out));
  } else {
    DequantiseInt8<<<groups, kThreads, 0, queue>>>(codes, scales, rows, columns, static_cast<float*>(out));
  }
  return cudaGetLastError();
}

int QuantiseFourBits(int device, const void* values, int type, int64_t count, int64_t block, const float* bounds,
                     const uint8_t* ordered, uint8_t* codes, float* scales, void* stream) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  Bounds4Bit table = {};
  for (int i = 0; i < 16; ++i) {
    table.bounds[i] = i < 15 ? bounds[i] : __builtin_inff();
    table.ordered[i] = ordered[i];
  }
  const auto queue = static_cast<cudaStream_t>(stream);
  if (type == RETORT_QUANT_BF16) {
    LaunchQuantise4Bit(static_cast<const __nv_bfloat16*>(values), count, block, table, codes, scales, queue);
  } else if (type == RETORT_QUANT_F16) {
    LaunchQuantise4Bit(static_cast<const __half*>(values), count, block, table, codes, scales, queue);
  } else {
    LaunchQuantise4Bit(static_cast<const float*>(values), count, block, table, codes, scales, queue);
  }
  return cudaGetLastError();
}

int QuantiseEightBits(int device, const void* half_values, int64_t rows, int64_t columns, int8_t* codes, float* scales,
                      void* stream) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  QuantiseInt8<<<Groups(rows * kThreads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const __half*>(half_values), rows, columns, codes, scales);
  return cudaGetLastError();
}

int Supports(int device) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, QuantiseInt8);
  cudaGetLastError();  // not to be found by the next launch
  return error;
}

const char* ErrorText(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace

extern "C" const RetortQuantFunctions* RetortQuantPlugin(void) {
  static const RetortQuantFunctions functions = {Supports,         DequantiseFourBits, DequantiseEightBits,
                                                 QuantiseFourBits, QuantiseEightBits,  ErrorText};
  return &functions;
}
