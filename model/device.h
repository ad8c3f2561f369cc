// Choosing and opening the device that tensors live on.
#pragma once

#include <c10/core/Device.h>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace retort {

// Opens libtorch_cuda when the machine has an NVIDIA driver, so that one binary serves machines with and without a GPU.
// Must be the first thing main does: later than the first CUDA question libtorch refuses. Without a driver or a CUDA
// build of torch it does nothing.
void OpenCudaIfPresent();

// "auto" (a GPU when there is one), "cpu" or "cuda". Errors: kInvalidArgument (another word), kFailedPrecondition
// ("cuda" where there is none; says why).
absl::StatusOr<c10::Device> ChooseDevice(absl::string_view name);

// GPUs that this process sees.
int CudaDevices();
// The GPU of one of several processes; where there are fewer GPUs than processes, they share.
c10::Device CudaDevice(int rank);

// Sets the number of CPU threads of this process's tensor work. The number is part of what makes the bits.
void SetThreads(int threads);

}  // namespace retort
