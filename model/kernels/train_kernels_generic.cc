#include <cmath>
#include <cstdint>

#include "model/kernels/train_kernels.h"

namespace retort::internal {
namespace {
#include "model/kernels/train_kernels.inc"
}  // namespace

extern const TrainKernels kGenericTrainKernels = kThese;

const TrainKernels& ChooseTrainKernels() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2TrainKernels;
#endif
  return kGenericTrainKernels;
}

}  // namespace retort::internal
