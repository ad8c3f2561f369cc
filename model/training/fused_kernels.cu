// The kernels of libretort_train.so: which of them is launched for which shape.
#include <algorithm>
#include <climits>

#include "model/training/fused_flat.cuh"
#include "model/training/fused_head.cuh"
#include "model/training/fused_plugin.h"
#include "model/training/fused_rows.cuh"

namespace retort::cuda {
namespace {

constexpr int kThreads = 256;

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Groups of threads for `items`, `each` to a group; the kernels go on where a grid cannot be as large.
unsigned Groups(int64_t items, int64_t each) {
  return static_cast<unsigned>(std::min<int64_t>(CeilDivide(items, each), INT_MAX));
}

// Calls body(T()) with the type of the values.
template <typename Body>
void WithType(int type, const Body& body) {
  if (type == RETORT_TRAIN_BF16) {
    body(__nv_bfloat16());
  } else if (type == RETORT_TRAIN_F16) {
    body(__half());
  } else {
    body(float());
  }
}

// Whether every row begins at a multiple of 16 bytes.
template <typename T>
bool InVectors(const RetortTrainRows& matrix) {
  return matrix.data == nullptr || (Aligned(matrix.data, 16) && matrix.stride % kVectorCount<T> == 0);
}

template <typename T>
bool InVectors(const RetortTrainNestedRows& matrix, int64_t inner) {
  return matrix.data == nullptr || (Aligned(matrix.data, 16) && matrix.stride % kVectorCount<T> == 0 &&
                                    (inner == 1 || matrix.inner_stride % kVectorCount<T> == 0));
}

// Calls launch.template operator()<lanes, packs of each>() with the smallest shape that holds a row of `packs`; false:
// none does.
template <typename Launch>
bool WithRowShape(int64_t packs, const Launch& launch) {
  if (packs <= 8) {
    launch.template operator()<8, 1>();
  } else if (packs <= 16) {
    launch.template operator()<16, 1>();
  } else if (packs <= 32) {
    launch.template operator()<32, 1>();
  } else if (packs <= 64) {
    launch.template operator()<32, 2>();
  } else if (packs <= 128) {
    launch.template operator()<32, 4>();
  } else if (packs <= 256) {
    launch.template operator()<256, 1>();
  } else if (packs <= 512) {
    launch.template operator()<256, 2>();
  } else if (packs <= 1024) {
    launch.template operator()<256, 4>();
  } else if (packs <= 2048) {
    launch.template operator()<512, 4>();
  } else if (Launch::kWidest && packs <= 4096) {
    if constexpr (Launch::kWidest) launch.template operator()<1024, 4>();
  } else {
    return false;
  }
  return true;
}

template <typename T>
struct RmsNormLaunch {
  static constexpr bool kWidest = true;
  RmsNormShape shape;
  RetortTrainNestedRows x;
  const T* weight;
  RetortTrainNestedRows y;
  cudaStream_t stream;

  template <int kLanes, int kPacks>
  void operator()() const {
    constexpr int kOwnThreads = kRmsNormThreads<kLanes>;
    RmsNormInRegisters<T, kLanes, kPacks>
        <<<Groups(shape.rows, kOwnThreads / kLanes), kOwnThreads, 0, stream>>>(shape, x, weight, y);
  }
};

template <typename T>
struct RmsNormBackwardLaunch {
  static constexpr bool kWidest = false;  // three rows at once are more than the registers hold
  RmsNormShape shape;
  RetortTrainNestedRows grad, x;
  const T* weight;
  RetortTrainNestedRows residual, dx;
  cudaStream_t stream;

  template <int kLanes, int kPacks>
  void operator()() const {
    constexpr int kOwnThreads = kRmsNormThreads<kLanes>;
    RmsNormBackwardInRegisters<T, kLanes, kPacks>
        <<<Groups(shape.rows, kOwnThreads / kLanes), kOwnThreads, 0, stream>>>(shape, grad, x, weight, residual, dx);
  }
};

int LaunchRmsNorm(int device, int type, int64_t rows, int64_t inner, int64_t width, const RetortTrainNestedRows* x,
                  const void* weight, float eps, const RetortTrainNestedRows* y, void* stream) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  const RmsNormShape shape = {rows, inner, static_cast<int>(width), 1.0f / static_cast<float>(width), eps};
  const auto queue = static_cast<cudaStream_t>(stream);
  WithType(type, [&](auto zero) {
    using T = decltype(zero);
    const T* weights = static_cast<const T*>(weight);
    const bool vectors =
        width % kVectorCount<T> == 0 && Aligned(weight, 16) && InVectors<T>(*x, inner) && InVectors<T>(*y, inner);
    if (!vectors) {
      RmsNormAnyRow<T, false><<<Groups(rows, 1), kThreads, 0, queue>>>(shape, *x, weights, *y);
    } else if (!WithRowShape(width / kVectorCount<T>, RmsNormLaunch<T>{shape, *x, weights, *y, queue})) {
      RmsNormAnyRow<T, true><<<Groups(rows, 1), kThreads, 0, queue>>>(shape, *x, weights, *y);
    }
  });
  return cudaGetLastError();
}

int LaunchRmsNormBackward(int device, int type, int64_t rows, int64_t inner, int64_t width,
                          const RetortTrainNestedRows* grad, const RetortTrainNestedRows* x, const void* weight,
                          float eps, const RetortTrainNestedRows* residual, const RetortTrainNestedRows* dx,
                          void* stream) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  const RmsNormShape shape = {rows, inner, static_cast<int>(width), 1.0f / static_cast<float>(width), eps};
  const auto queue = static_cast<cudaStream_t>(stream);
  WithType(type, [&](auto zero) {
    using T = decltype(zero);
    const T* weights = static_cast<const T*>(weight);
    const bool vectors = width % kVectorCount<T> == 0 && Aligned(weight, 16) && InVectors<T>(*grad, inner) &&
                         InVectors<T>(*x, inner) && InVectors<T>(*residual, inner) && InVectors<T>(*dx, inner);
    const RmsNormBackwardLaunch<T> in_registers{shape, *grad, *x, weights, *residual, *dx, queue};
    if (!vectors) {
      RmsNormBackwardAnyRow<T, false>
          <<<Groups(rows, 1), kThreads, 0, queue>>>(shape, *grad, *x, weights, *residual, *dx);
    } else if (!WithRowShape(width / kVectorCount<T>, in_registers)) {
      RmsNormBackwardAnyRow<T, true>
          <<<Groups(rows, 1), kThreads, 0, queue>>>(shape, *grad, *x, weights, *residual, *dx);
    }
  });
  return cudaGetLastError();
}

template <typename T, bool kVector>
void LaunchRotateAs(const RotateShape& shape, const RetortTrainRows& x, const RetortTrainRows& cosines,
                    const RetortTrainRows& sines, cudaStream_t stream) {
  constexpr unsigned kMostDeep = 64;  // CUDA's limit on blockDim.z
  const unsigned packs = static_cast<unsigned>(shape.half / Access<T, kVector>::kCount);
  const unsigned along = std::min(packs, 32u);
  const unsigned heads = std::min(static_cast<unsigned>(CeilDivide(shape.heads, 4)), kThreads / along);
  const unsigned tokens = std::min(kMostDeep, kThreads / (along * heads));
  Rotate<T, kVector><<<Groups(shape.tokens, tokens), dim3(along, heads, tokens), 0, stream>>>(shape, x, cosines, sines);
}

int LaunchRotate(int device, int type, int64_t tokens, int64_t heads, int64_t head_dim, int64_t half,
                 const RetortTrainRows* x, const RetortTrainRows* cosines, const RetortTrainRows* sines, int inverse,
                 void* stream) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  const RotateShape shape = {tokens, static_cast<int>(heads), static_cast<int>(head_dim), static_cast<int>(half),
                             inverse != 0 ? -1.0f : 1.0f};
  const auto queue = static_cast<cudaStream_t>(stream);
  WithType(type, [&](auto zero) {
    using T = decltype(zero);
    const bool vectors = half % kVectorCount<T> == 0 && head_dim % kVectorCount<T> == 0 && InVectors<T>(*x) &&
                         InVectors<float>(*cosines) && InVectors<float>(*sines);
    if (vectors) {
      LaunchRotateAs<T, true>(shape, *x, *cosines, *sines, queue);
    } else {
      LaunchRotateAs<T, false>(shape, *x, *cosines, *sines, queue);
    }
  });
  return cudaGetLastError();
}

// Threads along rows of `packs`, as many rows as a block then has room for.
struct RowGrid {
  RowGrid(int64_t rows, int64_t packs) {
    const auto along = static_cast<unsigned>(std::min<int64_t>(kThreads, CeilDivide(packs, kWarp) * kWarp));
    block = dim3(along, kThreads / along);
    grid = dim3(Groups(packs, along), static_cast<unsigned>(std::min<int64_t>(CeilDivide(rows, block.y), USHRT_MAX)));
  }
  dim3 grid, block;
};

int LaunchSwiGlu(int device, int type, int64_t rows, int64_t width, const RetortTrainRows* gate_up,
                 const RetortTrainRows* y, void* stream) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  const auto queue = static_cast<cudaStream_t>(stream);
  const int columns = static_cast<int>(width);
  WithType(type, [&](auto zero) {
    using T = decltype(zero);
    if (width % kVectorCount<T> == 0 && InVectors<T>(*gate_up) && InVectors<T>(*y)) {
      const RowGrid over(rows, width / kVectorCount<T>);
      SwiGlu<T, true><<<over.grid, over.block, 0, queue>>>(rows, columns, *gate_up, *y);
    } else {
      const RowGrid over(rows, width);
      SwiGlu<T, false><<<over.grid, over.block, 0, queue>>>(rows, columns, *gate_up, *y);
    }
  });
  return cudaGetLastError();
}

int LaunchSwiGluBackward(int device, int type, int64_t rows, int64_t width, const RetortTrainRows* grad,
                         const RetortTrainRows* gate_up, const RetortTrainRows* y, void* stream) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  const auto queue = static_cast<cudaStream_t>(stream);
  const int columns = static_cast<int>(width);
  WithType(type, [&](auto zero) {
    using T = decltype(zero);
    if (width % kVectorCount<T> == 0 && InVectors<T>(*grad) && InVectors<T>(*gate_up) && InVectors<T>(*y)) {
      const RowGrid over(rows, width / kVectorCount<T>);
      SwiGluBackward<T, true><<<over.grid, over.block, 0, queue>>>(rows, columns, *grad, *gate_up, *y);
    } else {
      const RowGrid over(rows, width);
      SwiGluBackward<T, false><<<over.grid, over.block, 0, queue>>>(rows, columns, *grad, *gate_up, *y);
    }
  });
  return cudaGetLastError();
}

int LaunchCrossEntropy(int device, int type, int64_t rows, int64_t vocabulary, const RetortTrainRows* logits,
                       const int64_t* targets, float scale, int gradient, float* losses, void* stream) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  constexpr int kStaticBytes = 1024;  // more than what the kernel declares
  int most_bytes = 0;
  cudaError_t error = cudaDeviceGetAttribute(&most_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  WithType(type, [&](auto zero) {
    using T = decltype(zero);
    const int64_t packs = vocabulary / kVectorCount<T>;
    const int64_t cached = gradient != 0 ? std::min<int64_t>(packs, (most_bytes - kStaticBytes) / 16) : 0;
    const auto bytes = static_cast<int>(cached * 16);
    error = cudaFuncSetAttribute(CrossEntropy<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return;
    const int threads = packs > kHeadThreads ? kHeadThreads : kThreads;
    CrossEntropy<T><<<Groups(rows, 1), threads, bytes, static_cast<cudaStream_t>(stream)>>>(
        static_cast<T*>(logits->data), logits->stride, rows, static_cast<int>(vocabulary), targets, scale,
        gradient != 0, static_cast<int>(cached), losses);
  });
  const cudaError_t launched = cudaGetLastError();
  return error != cudaSuccess ? error : launched;
}

int LaunchSquareSum(int device, const float* x, int64_t count, double* parts, double* out, void* stream) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  const auto queue = static_cast<cudaStream_t>(stream);
  if (Aligned(x, 16)) {
    SquareSumParts<true><<<RETORT_TRAIN_PARTS, kFlatThreads, 0, queue>>>(x, count, parts);
  } else {
    SquareSumParts<false><<<RETORT_TRAIN_PARTS, kFlatThreads, 0, queue>>>(x, count, parts);
  }
  SumParts<<<1, RETORT_TRAIN_PARTS, 0, queue>>>(parts, out);
  return cudaGetLastError();
}

template <int kMost>
void LaunchAdamWOver(const RetortTrainAdamW& step, const double* square_sum, const Undecayed<kMost>& undecayed,
                     int64_t begin, int64_t end, const AdamWBuffers& buffers, cudaStream_t stream) {
  // A block reads the norm once for all that it does.
  constexpr int64_t kMostGroups = 4096;
  if (Aligned(buffers.gradient, 16) && Aligned(buffers.parameters, 16) && Aligned(buffers.exp_avg, 16) &&
      Aligned(buffers.exp_avg_sq, 16)) {
    const auto groups = static_cast<unsigned>(std::min(CeilDivide(end - begin, 4 * kFlatThreads), kMostGroups));
    AdamW<true, kMost><<<groups, kFlatThreads, 0, stream>>>(step, square_sum, undecayed, begin, end, buffers);
  } else {
    const auto groups = static_cast<unsigned>(std::min(CeilDivide(end - begin, kFlatThreads), kMostGroups));
    AdamW<false, kMost><<<groups, kFlatThreads, 0, stream>>>(step, square_sum, undecayed, begin, end, buffers);
  }
}

int LaunchAdamW(int device, const RetortTrainAdamW* step, const double* square_sum, const RetortTrainRange* undecayed,
                int64_t undecayed_count, int64_t count, const float* gradient, float* parameters, float* exp_avg,
                float* exp_avg_sq, void* stream) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  const auto queue = static_cast<cudaStream_t>(stream);
  const AdamWBuffers buffers = {gradient, parameters, exp_avg, exp_avg_sq};
  if (undecayed_count == 0) LaunchAdamWOver(*step, square_sum, Undecayed<0>{}, 0, count, buffers, queue);
  int64_t begin = 0;
  int64_t next = 0;  // the first range that ends behind `begin`
  while (undecayed_count > 0 && begin < count) {
    Undecayed<kMostRanges> own;
    own.count = static_cast<int>(std::min<int64_t>(kMostRanges, undecayed_count - next));
    std::copy_n(undecayed + next, own.count, own.ranges);
    next += own.count;
    // Up to the first range that is left, at a multiple of 4: it or up to three of those before it may reach over.
    const int64_t end = next < undecayed_count ? undecayed[next].first / 4 * 4 : count;
    LaunchAdamWOver(*step, square_sum, own, begin, end, buffers, queue);
    begin = end;
    while (next > 0 && undecayed[next - 1].last > begin) --next;
  }
  return cudaGetLastError();
}

int LaunchFlatBlocks(int device, const float* flat, const RetortTrainBlock* blocks, const int32_t* block_of_tile,
                     int64_t tiles, void* stream) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  WriteFlatBlocks<<<static_cast<unsigned>(tiles), kFlatThreads, 0, static_cast<cudaStream_t>(stream)>>>(flat, blocks,
                                                                                                        block_of_tile);
  return cudaGetLastError();
}

int Supports(int device) {
  const OnDevice on(device);
  if (on.error() != cudaSuccess) return on.error();
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, SumParts);
  cudaGetLastError();  // not to be found by the next launch
  return error;
}

const char* ErrorText(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace
}  // namespace retort::cuda

extern "C" const RetortTrainFunctions* RetortTrainPlugin(void) {
  using namespace retort::cuda;
  static const RetortTrainFunctions functions = {
      Supports,           LaunchRmsNorm,   LaunchRmsNormBackward, LaunchRotate,     LaunchSwiGlu, LaunchSwiGluBackward,
      LaunchCrossEntropy, LaunchSquareSum, LaunchAdamW,           LaunchFlatBlocks, ErrorText};
  return &functions;
}
