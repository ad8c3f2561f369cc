// Kernels over the flat f32 buffers of an optimizer.
#pragma once

#include "model/kernels/cuda_common.cuh"
#include "model/training/fused_plugin.h"

namespace retort::cuda {

constexpr int kFlatThreads = 256;

// The sum over the block, in thread 0; the order of additions is fixed. shared: a double for each warp.
__device__ inline double SumOverBlock(double value, double* shared) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, distance);
  }
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = value;
  __syncthreads();
  double sum = 0.0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < static_cast<int>(blockDim.x) / kWarp; ++i) sum += shared[i];
  }
  return sum;
}

// Which thread of which block adds which value hangs on `count` alone: always RETORT_TRAIN_PARTS blocks, four
// neighbouring values to a thread at a time, whether they are loaded together (kVector) or not.
template <bool kVector>
__global__ void __launch_bounds__(kFlatThreads)
    SquareSumParts(const float* __restrict__ x, int64_t count, double* __restrict__ parts) {
  __shared__ double shared[kFlatThreads / kWarp];
  constexpr int kCount = 4;
  constexpr int64_t kStep = int64_t{RETORT_TRAIN_PARTS} * kFlatThreads;
  const int64_t packs = count / kCount;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kFlatThreads + threadIdx.x;
  double sum = 0.0;
#pragma unroll 4
  for (int64_t pack = first; pack < packs; pack += kStep) {
    float values[kCount];
    if constexpr (kVector) {
      Access<float, true>::Unpack(Access<float, true>::Load(x + pack * kCount), values);
    } else {
#pragma unroll
      for (int j = 0; j < kCount; ++j) values[j] = x[pack * kCount + j];
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const double value = values[j];
      sum = fma(value, value, sum);
    }
  }
  if (first < count - packs * kCount) {
    const double value = x[packs * kCount + first];
    sum = fma(value, value, sum);
  }
  sum = SumOverBlock(sum, shared);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(RETORT_TRAIN_PARTS)
    SumParts(const double* __restrict__ parts, double* __restrict__ out) {
  __shared__ double shared[RETORT_TRAIN_PARTS / kWarp];
  const double sum = SumOverBlock(parts[threadIdx.x], shared);
  if (threadIdx.x == 0) *out = sum;
}

// The ranges that weight decay spares among the elements of one launch: they travel with it, and a step that has more
// of them takes several launches.
template <int kMost>
struct Undecayed {
  int count;
  RetortTrainRange ranges[kMost];
};
template <>
struct Undecayed<0> {};

constexpr int kMostRanges = 240;  // 4 KiB of arguments

// The first range that ends behind element i.
template <int kMost>
__device__ int RangeBehind(const Undecayed<kMost>& undecayed, int64_t i) {
  int low = 0;
  int high = undecayed.count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (undecayed.ranges[middle].last <= i) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

struct AdamWBuffers {
  const float* gradient;
  float* parameters;
  float* exp_avg;
  float* exp_avg_sq;
};

// Elements [begin, end); where kVector is set, begin is a multiple of 4. Operation by operation what the CPU does: no
// product is added unrounded.
template <bool kVector, int kMost>
__global__ void __launch_bounds__(kFlatThreads)
    AdamW(RetortTrainAdamW s, const double* square_sum, const __grid_constant__ Undecayed<kMost> undecayed,
          int64_t begin, int64_t end, AdamWBuffers b) {
  using A = Access<float, kVector>;
  __shared__ float shared_clip;
  if (threadIdx.x == 0) {
    double clip = 1.0;
    if (s.max_norm > 0.0) {
      const double wanted = s.max_norm / (sqrt(*square_sum) + 1e-6);
      if (wanted < 1.0) clip = wanted;  // no number: not clipped, as on the CPU
    }
    shared_clip = static_cast<float>(clip);
  }
  __syncthreads();
  const float clip = shared_clip;
  const auto update = [&](bool decays, float gradient, float& parameter, float& mean, float& square) {
    const float g = __fmul_rn(gradient, clip);
    const float p = decays ? __fmul_rn(parameter, s.decay) : parameter;
    mean = __fadd_rn(mean, __fmul_rn(s.one_minus_beta1, __fsub_rn(g, mean)));
    square = __fadd_rn(__fmul_rn(square, s.beta2), __fmul_rn(__fmul_rn(s.one_minus_beta2, g), g));
    const float denominator = __fadd_rn(__fdiv_rn(__fsqrt_rn(square), s.bias_correction2_sqrt), s.epsilon);
    parameter = __fadd_rn(p, __fdiv_rn(__fmul_rn(s.negative_step_size, mean), denominator));
  };
  const int64_t step = static_cast<int64_t>(gridDim.x) * kFlatThreads * A::kCount;
  for (int64_t i = begin + (static_cast<int64_t>(blockIdx.x) * kFlatThreads + threadIdx.x) * A::kCount; i < end;
       i += step) {
    int range = 0;
    if constexpr (kMost > 0) range = RangeBehind(undecayed, i);
    const auto decays = [&](int64_t element) {
      if constexpr (kMost > 0) {
        while (range < undecayed.count && undecayed.ranges[range].last <= element) ++range;
        return range >= undecayed.count || undecayed.ranges[range].first > element;
      } else {
        return true;
      }
    };
    if (i + A::kCount <= end) {
      float g[A::kCount];
      float p[A::kCount];
      float m[A::kCount];
      float v[A::kCount];
      const typename A::Raw g_raw = A::Load(b.gradient + i);
      const typename A::Raw p_raw = A::Load(b.parameters + i);
      const typename A::Raw m_raw = A::Load(b.exp_avg + i);
      const typename A::Raw v_raw = A::Load(b.exp_avg_sq + i);
      A::Unpack(g_raw, g);
      A::Unpack(p_raw, p);
      A::Unpack(m_raw, m);
      A::Unpack(v_raw, v);
#pragma unroll
      for (int j = 0; j < A::kCount; ++j) update(decays(i + j), g[j], p[j], m[j], v[j]);
      A::Store(b.parameters + i, A::Pack(p));
      A::Store(b.exp_avg + i, A::Pack(m));
      A::Store(b.exp_avg_sq + i, A::Pack(v));
    } else {
      for (int64_t e = i; e < end; ++e) {
        update(decays(e), b.gradient[e], b.parameters[e], b.exp_avg[e], b.exp_avg_sq[e]);
      }
    }
  }
}

// Values of a thread's share of a tile: kCount neighbours of the matrix.
template <typename T>
__device__ void StoreBlockValues(T* to, const float (&values)[8], int count, bool vector) {
  using A = Access<T, true>;
  if (vector && count == 8) {
#pragma unroll
    for (int i = 0; i < 8; i += A::kCount) A::Store(to + i, A::Pack(values + i));
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i < count) to[i] = Narrow<T>(values[i]);
    }
  }
}

constexpr int kTileCount = 8;  // values that a thread writes at a time

template <typename T>
__device__ void WriteTile(const float* __restrict__ flat, const RetortTrainBlock& block, int64_t tile, float* shared) {
  const int64_t across = (block.columns + block.tile_columns - 1) / block.tile_columns;
  const int64_t first_row = tile / across * block.tile_rows;
  const int64_t first_column = tile % across * block.tile_columns;
  const int rows = static_cast<int>(min(static_cast<int64_t>(block.tile_rows), block.rows - first_row));
  const int columns = static_cast<int>(min(static_cast<int64_t>(block.tile_columns), block.columns - first_column));
  const float* from = flat + block.offset + first_row * block.columns + first_column;
  T* matrix = static_cast<T*>(block.matrix);
  const bool vector = reinterpret_cast<uintptr_t>(matrix) % 16 == 0 && block.stride * sizeof(T) % 16 == 0;
  const int column_mask = block.tile_columns - 1;
  const int column_shift = 31 - __clz(block.tile_columns);
  if (block.transposed == 0) {
    const bool vector_loads = reinterpret_cast<uintptr_t>(from) % 16 == 0 && block.columns % 4 == 0;
    T* to = matrix + first_row * block.stride + first_column;
#pragma unroll
    for (int i = 0; i < RETORT_TRAIN_TILE / (kFlatThreads * kTileCount); ++i) {
      const int at = (i * kFlatThreads + static_cast<int>(threadIdx.x)) * kTileCount;
      const int row = at >> column_shift;
      const int column = at & column_mask;
      const int count = row < rows ? min(kTileCount, columns - column) : 0;
      if (count <= 0) continue;
      const float* own = from + row * block.columns + column;
      float values[kTileCount] = {};
      if (vector_loads && count == kTileCount) {
        Access<float, true>::Unpack(Access<float, true>::Load(own), values);
        Access<float, true>::Unpack(Access<float, true>::Load(own + 4), values + 4);
      } else {
#pragma unroll
        for (int j = 0; j < kTileCount; ++j) {
          if (j < count) values[j] = own[j];
        }
      }
#pragma unroll
      for (int j = 0; j < kTileCount; ++j) values[j] *= block.scale;
      StoreBlockValues(to + row * block.stride + column, values, count, vector);
    }
    return;
  }
  // A row of the tile in shared memory is one longer than it is: columns then lie in different banks.
  const int pitch = block.tile_columns + 1;
#pragma unroll 8
  for (int i = 0; i < RETORT_TRAIN_TILE / kFlatThreads; ++i) {
    const int at = i * kFlatThreads + static_cast<int>(threadIdx.x);
    const int row = at >> column_shift;
    const int column = at & column_mask;
    if (row < rows && column < columns) shared[row * pitch + column] = from[row * block.columns + column];
  }
  __syncthreads();
  T* to = matrix + first_column * block.stride + first_row;
  const int row_mask = block.tile_rows - 1;
  const int row_shift = 31 - __clz(block.tile_rows);
#pragma unroll
  for (int i = 0; i < RETORT_TRAIN_TILE / (kFlatThreads * kTileCount); ++i) {
    const int at = (i * kFlatThreads + static_cast<int>(threadIdx.x)) * kTileCount;
    const int column = at >> row_shift;
    const int row = at & row_mask;
    const int count = column < columns ? min(kTileCount, rows - row) : 0;
    if (count <= 0) continue;
    float values[kTileCount] = {};
#pragma unroll
    for (int j = 0; j < kTileCount; ++j) {
      if (j < count) values[j] = shared[(row + j) * pitch + column] * block.scale;
    }
    StoreBlockValues(to + column * block.stride + row, values, count, vector);
  }
}

// A block of threads has a tile of a block.
__global__ void __launch_bounds__(kFlatThreads)
    WriteFlatBlocks(const float* __restrict__ flat, const RetortTrainBlock* __restrict__ blocks,
                    const int32_t* __restrict__ block_of_tile) {
  __shared__ float shared[RETORT_TRAIN_TILE + RETORT_TRAIN_TILE_SIDE_MAX];
  const RetortTrainBlock block = blocks[block_of_tile[blockIdx.x]];
  const int64_t tile = static_cast<int64_t>(blockIdx.x) - block.first_tile;
  if (block.type == RETORT_TRAIN_BF16) {
    WriteTile<__nv_bfloat16>(flat, block, tile, shared);
  } else if (block.type == RETORT_TRAIN_F16) {
    WriteTile<__half>(flat, block, tile, shared);
  } else {
    WriteTile<float>(flat, block, tile, shared);
  }
}

}  // namespace retort::cuda
