// Compiled with -mavx2 -mfma; nothing here may run before ChooseTrainKernels has asked the processor.
#include <cmath>
#include <cstdint>

#include "model/kernels/train_kernels.h"

namespace retort::internal {
namespace {
#include "model/kernels/train_kernels.inc"
}  // namespace

extern const TrainKernels kAvx2TrainKernels = kThese;

}  // namespace retort::internal
