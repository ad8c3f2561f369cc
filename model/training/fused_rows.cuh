// Kernels that go over rows of activations: RMS norms, rotations, SwiGLU.
#pragma once

#include "model/kernels/cuda_common.cuh"
#include "model/training/fused_plugin.h"

namespace retort::cuda {

// e^x: two instructions where the result is rounded to 16 bits.
template <typename T>
__device__ float Exp(float x) {
  return __expf(x);
}
template <>
__device__ inline float Exp<float>(float x) {
  return expf(x);
}

template <typename T>
__device__ float Sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + __expf(-x));  // beyond 2^126 the quotient is 0, as it should be
}
template <>
__device__ inline float Sigmoid<float>(float x) {
  return 1.0f / (1.0f + expf(-x));
}

struct Place {
  int64_t outer, inner;
};

__device__ inline Place PlaceOf(int64_t row, int64_t inner) {
  if (inner == 1) return {row, 0};
  const int64_t outer = row <= UINT32_MAX ? static_cast<uint32_t>(row) / static_cast<uint32_t>(inner) : row / inner;
  return {outer, row - outer * inner};
}

template <typename T>
__device__ T* RowOf(const RetortTrainNestedRows& matrix, const Place& place) {
  return static_cast<T*>(matrix.data) + place.outer * matrix.stride + place.inner * matrix.inner_stride;
}

struct RmsNormShape {
  int64_t rows, inner;
  int width;
  float inverse_width;
  float eps;
};

template <int kLanes>
constexpr int kRmsNormThreads = kLanes < 256 ? 256 : kLanes;

__device__ inline float InverseRms(float square_sum, const RmsNormShape& shape) {
  return rsqrtf(square_sum * shape.inverse_width + shape.eps);
}

// kLanes threads have a row, kPacks 16-byte packs of it each, in registers.
template <typename T, int kLanes, int kPacks>
__global__ void __launch_bounds__(kRmsNormThreads<kLanes>)
    RmsNormInRegisters(RmsNormShape shape, RetortTrainNestedRows x, const T* __restrict__ weight,
                       RetortTrainNestedRows y) {
  using A = Access<T, true>;
  constexpr int kRows = kRmsNormThreads<kLanes> / kLanes;
  __shared__ float shared[kLanes > kWarp ? kLanes / kWarp : 1];
  const int packs = shape.width / A::kCount;
  const int lane = threadIdx.x % kLanes;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kRows;
  // Lanes without a row go on with those that have one: they meet in the sum.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRows; first < shape.rows; first += step) {
    const int64_t row = first + threadIdx.x / kLanes;
    const Place place = PlaceOf(row, shape.inner);
    const int own = row < shape.rows ? packs : 0;
    const T* from = RowOf<const T>(x, place);
    typename A::Raw values[kPacks];
    typename A::Raw weights[kPacks];
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int pack = lane + i * kLanes;
      values[i] = {};
      if (pack < own) values[i] = A::Load(from + pack * A::kCount);
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int pack = lane + i * kLanes;
      if (pack < own) weights[i] = A::Load(weight + pack * A::kCount);
    }
    float sum[1] = {0.0f};
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      float v[A::kCount];
      A::Unpack(values[i], v);
#pragma unroll
      for (int j = 0; j < A::kCount; ++j) sum[0] += v[j] * v[j];
    }
    SumOver<kLanes>(sum, shared);
    const float inverse = InverseRms(sum[0], shape);
    T* to = RowOf<T>(y, place);
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int pack = lane + i * kLanes;
      if (pack >= own) continue;
      float v[A::kCount];
      float w[A::kCount];
      A::Unpack(values[i], v);
      A::Unpack(weights[i], w);
#pragma unroll
      for (int j = 0; j < A::kCount; ++j) v[j] *= inverse * w[j];
      A::Store(to + pack * A::kCount, A::Pack(v));
    }
  }
}

// Any row: 256 threads go over it twice.
template <typename T, bool kVector>
__global__ void __launch_bounds__(256)
    RmsNormAnyRow(RmsNormShape shape, RetortTrainNestedRows x, const T* __restrict__ weight, RetortTrainNestedRows y) {
  using A = Access<T, kVector>;
  __shared__ float shared[256 / kWarp];
  const int packs = shape.width / A::kCount;
  for (int64_t row = blockIdx.x; row < shape.rows; row += gridDim.x) {
    const Place place = PlaceOf(row, shape.inner);
    const T* from = RowOf<const T>(x, place);
    float sum[1] = {0.0f};
#pragma unroll 4
    for (int pack = threadIdx.x; pack < packs; pack += 256) {
      float v[A::kCount];
      A::Unpack(A::Load(from + static_cast<int64_t>(pack) * A::kCount), v);
#pragma unroll
      for (int j = 0; j < A::kCount; ++j) sum[0] += v[j] * v[j];
    }
    SumOver<256>(sum, shared);
    const float inverse = InverseRms(sum[0], shape);
    T* to = RowOf<T>(y, place);
    for (int pack = threadIdx.x; pack < packs; pack += 256) {
      const int64_t at = static_cast<int64_t>(pack) * A::kCount;
      float v[A::kCount];
      float w[A::kCount];
      A::Unpack(A::Load(from + at), v);
      A::Unpack(A::Load(weight + at), w);
#pragma unroll
      for (int j = 0; j < A::kCount; ++j) v[j] *= inverse * w[j];
      A::Store(to + at, A::Pack(v));
    }
  }
}

// With s = 1 / rms(x): dx = s * (g * w - x * s^2 * mean(g * w * x)).
struct RmsNormTotals {
  float inverse, along_x;
};

__device__ inline RmsNormTotals RmsNormTotalsOf(const float (&sums)[2], const RmsNormShape& shape) {
  const float inverse = InverseRms(sums[0], shape);
  return {inverse, inverse * inverse * sums[1] * shape.inverse_width};
}

template <int kCount>
__device__ void AddToRmsNormSums(const float (&g)[kCount], const float (&v)[kCount], const float (&w)[kCount],
                                 float (&sums)[2]) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    sums[0] += v[j] * v[j];
    sums[1] += g[j] * w[j] * v[j];
  }
}

// v becomes dx; it begins as x, `d` as the residual.
template <int kCount>
__device__ void RmsNormGradient(const RmsNormTotals& totals, const float (&g)[kCount], const float (&w)[kCount],
                                const float (&d)[kCount], float (&v)[kCount]) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) v[j] = d[j] + totals.inverse * (g[j] * w[j] - v[j] * totals.along_x);
}

template <typename T, int kLanes, int kPacks>
__global__ void __launch_bounds__(kRmsNormThreads<kLanes>)
    RmsNormBackwardInRegisters(RmsNormShape shape, RetortTrainNestedRows grad, RetortTrainNestedRows x,
                               const T* __restrict__ weight, RetortTrainNestedRows residual, RetortTrainNestedRows dx) {
  using A = Access<T, true>;
  constexpr int kRows = kRmsNormThreads<kLanes> / kLanes;
  __shared__ float shared[kLanes > kWarp ? 2 * kLanes / kWarp : 1];
  const int packs = shape.width / A::kCount;
  const int lane = threadIdx.x % kLanes;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kRows;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRows; first < shape.rows; first += step) {
    const int64_t row = first + threadIdx.x / kLanes;
    const Place place = PlaceOf(row, shape.inner);
    const int own = row < shape.rows ? packs : 0;
    const int own_residual = residual.data == nullptr ? 0 : own;
    const T* grads = RowOf<const T>(grad, place);
    const T* from = RowOf<const T>(x, place);
    const T* residuals = RowOf<const T>(residual, place);
    typename A::Raw g_raw[kPacks];
    typename A::Raw x_raw[kPacks];
    typename A::Raw d_raw[kPacks];
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int pack = lane + i * kLanes;
      g_raw[i] = {};
      x_raw[i] = {};
      d_raw[i] = {};
      if (pack < own) {
        g_raw[i] = A::Load(grads + pack * A::kCount);
        x_raw[i] = A::Load(from + pack * A::kCount);
      }
      if (pack < own_residual) d_raw[i] = A::Load(residuals + pack * A::kCount);
    }
    float sums[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int pack = lane + i * kLanes;
      if (pack >= own) continue;
      float g[A::kCount];
      float v[A::kCount];
      float w[A::kCount];
      A::Unpack(g_raw[i], g);
      A::Unpack(x_raw[i], v);
      A::Unpack(A::Load(weight + pack * A::kCount), w);
      AddToRmsNormSums(g, v, w, sums);
    }
    SumOver<kLanes>(sums, shared);
    const RmsNormTotals totals = RmsNormTotalsOf(sums, shape);
    T* to = RowOf<T>(dx, place);
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int pack = lane + i * kLanes;
      if (pack >= own) continue;
      float g[A::kCount];
      float v[A::kCount];
      float w[A::kCount];
      float d[A::kCount];
      A::Unpack(g_raw[i], g);
      A::Unpack(x_raw[i], v);
      A::Unpack(A::Load(weight + pack * A::kCount), w);
      A::Unpack(d_raw[i], d);
      RmsNormGradient(totals, g, w, d, v);
      A::Store(to + pack * A::kCount, A::Pack(v));
    }
  }
}

template <typename T, bool kVector>
__global__ void __launch_bounds__(256)
    RmsNormBackwardAnyRow(RmsNormShape shape, RetortTrainNestedRows grad, RetortTrainNestedRows x,
                          const T* __restrict__ weight, RetortTrainNestedRows residual, RetortTrainNestedRows dx) {
  using A = Access<T, kVector>;
  __shared__ float shared[2 * 256 / kWarp];
  const int packs = shape.width / A::kCount;
  for (int64_t row = blockIdx.x; row < shape.rows; row += gridDim.x) {
    const Place place = PlaceOf(row, shape.inner);
    const T* grads = RowOf<const T>(grad, place);
    const T* from = RowOf<const T>(x, place);
    float g[A::kCount];
    float v[A::kCount];
    float w[A::kCount];
    float sums[2] = {0.0f, 0.0f};
#pragma unroll 2
    for (int pack = threadIdx.x; pack < packs; pack += 256) {
      const int64_t at = static_cast<int64_t>(pack) * A::kCount;
      A::Unpack(A::Load(grads + at), g);
      A::Unpack(A::Load(from + at), v);
      A::Unpack(A::Load(weight + at), w);
      AddToRmsNormSums(g, v, w, sums);
    }
    SumOver<256>(sums, shared);
    const RmsNormTotals totals = RmsNormTotalsOf(sums, shape);
    T* to = RowOf<T>(dx, place);
    for (int pack = threadIdx.x; pack < packs; pack += 256) {
      const int64_t at = static_cast<int64_t>(pack) * A::kCount;
      float d[A::kCount] = {};
      A::Unpack(A::Load(grads + at), g);
      A::Unpack(A::Load(from + at), v);
      A::Unpack(A::Load(weight + at), w);
      if (residual.data != nullptr) A::Unpack(A::Load(RowOf<const T>(residual, place) + at), d);
      RmsNormGradient(totals, g, w, d, v);
      A::Store(to + at, A::Pack(v));
    }
  }
}

struct RotateShape {
  int64_t tokens;
  int heads, head_dim, half;
  float sign;  // of the sines
};

// `count` values of a table of f32.
template <int kCount>
__device__ void LoadTable(const float* from, float (&values)[kCount]) {
  if constexpr (kCount == 1) {
    values[0] = *from;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) Access<float, true>::Unpack(Access<float, true>::Load(from + i), values + i);
  }
}

// A block has blockDim.z tokens; a thread turns the same values of every blockDim.y-th head, four at a time.
template <typename T, bool kVector>
__global__ void __launch_bounds__(256)
    Rotate(RotateShape shape, RetortTrainRows x, RetortTrainRows cosines, RetortTrainRows sines) {
  using A = Access<T, kVector>;
  constexpr int kHeads = 4;
  const int packs = shape.half / A::kCount;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.z;
  for (int64_t token = static_cast<int64_t>(blockIdx.x) * blockDim.z + threadIdx.z; token < shape.tokens;
       token += step) {
    T* row = static_cast<T*>(x.data) + token * x.stride;
    for (int pack = threadIdx.x; pack < packs; pack += blockDim.x) {
      const int at = pack * A::kCount;
      float c[A::kCount];
      float s[A::kCount];
      LoadTable(static_cast<const float*>(cosines.data) + token * cosines.stride + at, c);
      LoadTable(static_cast<const float*>(sines.data) + token * sines.stride + at, s);
      for (int head = threadIdx.y; head < shape.heads; head += kHeads * blockDim.y) {
        typename A::Raw low[kHeads];
        typename A::Raw high[kHeads];
#pragma unroll
        for (int i = 0; i < kHeads; ++i) {
          const int own = head + i * blockDim.y;
          if (own >= shape.heads) continue;
          const T* from = row + static_cast<int64_t>(own) * shape.head_dim + at;
          low[i] = A::Load(from);
          high[i] = A::Load(from + shape.half);
        }
#pragma unroll
        for (int i = 0; i < kHeads; ++i) {
          const int own = head + i * blockDim.y;
          if (own >= shape.heads) continue;
          float a[A::kCount];
          float b[A::kCount];
          A::Unpack(low[i], a);
          A::Unpack(high[i], b);
#pragma unroll
          for (int j = 0; j < A::kCount; ++j) {
            const float sine = shape.sign * s[j];
            const float turned = a[j] * c[j] - b[j] * sine;
            b[j] = b[j] * c[j] + a[j] * sine;
            a[j] = turned;
          }
          T* to = row + static_cast<int64_t>(own) * shape.head_dim + at;
          A::Store(to, A::Pack(a));
          A::Store(to + shape.half, A::Pack(b));
        }
      }
    }
  }
}

// Threads along a row in x, rows in y.
template <typename T, bool kVector>
__global__ void __launch_bounds__(256) SwiGlu(int64_t rows, int width, RetortTrainRows gate_up, RetortTrainRows y) {
  using A = Access<T, kVector>;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * A::kCount;
  if (at >= width) return;
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.y;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < rows; row += step) {
    const T* from = static_cast<const T*>(gate_up.data) + row * gate_up.stride + at;
    const typename A::Raw gate_raw = A::Load(from);
    const typename A::Raw up_raw = A::Load(from + width);
    float gate[A::kCount];
    float up[A::kCount];
    A::Unpack(gate_raw, gate);
    A::Unpack(up_raw, up);
#pragma unroll
    for (int j = 0; j < A::kCount; ++j) up[j] *= gate[j] * Sigmoid<T>(gate[j]);
    A::Store(static_cast<T*>(y.data) + row * y.stride + at, A::Pack(up));
  }
}

template <typename T, bool kVector>
__global__ void __launch_bounds__(256)
    SwiGluBackward(int64_t rows, int width, RetortTrainRows grad, RetortTrainRows gate_up, RetortTrainRows y) {
  using A = Access<T, kVector>;
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * A::kCount;
  if (at >= width) return;
  const int64_t step = static_cast<int64_t>(gridDim.y) * blockDim.y;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y; row < rows; row += step) {
    T* own = static_cast<T*>(gate_up.data) + row * gate_up.stride + at;
    const typename A::Raw gate_raw = A::Load(own);
    const typename A::Raw up_raw = A::Load(own + width);
    const typename A::Raw grad_raw = A::Load(static_cast<const T*>(grad.data) + row * grad.stride + at);
    float gate[A::kCount];
    float up[A::kCount];
    float g[A::kCount];
    A::Unpack(gate_raw, gate);
    A::Unpack(up_raw, up);
    A::Unpack(grad_raw, g);
#pragma unroll
    for (int j = 0; j < A::kCount; ++j) {
      const float sigmoid = Sigmoid<T>(gate[j]);
      const float silu = gate[j] * sigmoid;
      const float value = silu * up[j];
      gate[j] = g[j] * up[j] * (sigmoid + silu * (1.0f - sigmoid));
      up[j] = g[j] * silu;
      g[j] = value;
    }
    A::Store(own, A::Pack(gate));
    A::Store(own + width, A::Pack(up));
    if (y.data != nullptr) A::Store(static_cast<T*>(y.data) + row * y.stride + at, A::Pack(g));
  }
}

}  // namespace retort::cuda
