#include "model/device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace retort {
namespace {

// Why there is no CUDA; written once, by OpenCudaIfPresent.
std::string& WhyNoCuda() {
  static std::string& reason = *new std::string("OpenCudaIfPresent was not called");
  return reason;
}

}  // namespace

void OpenCudaIfPresent() {
  const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
  if (visible != nullptr && (*visible == '\0' || absl::string_view(visible) == "-1")) {
    WhyNoCuda() = "CUDA_VISIBLE_DEVICES hides every GPU";
    return;
  }
  if (dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL) == nullptr) {
    WhyNoCuda() = absl::StrCat("no NVIDIA driver: ", dlerror());
    return;
  }
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    WhyNoCuda() = absl::StrCat("libtorch_cuda.so does not open: ", dlerror());
    return;
  }
  WhyNoCuda() = "the driver reports no usable GPU";
}

absl::StatusOr<c10::Device> ChooseDevice(absl::string_view name) {
  if (name == "cpu") return c10::Device(c10::kCPU);
  if (name != "auto" && name != "cuda") {
    return absl::InvalidArgumentError(absl::StrCat("device \"", name, "\": must be auto, cpu or cuda"));
  }
  if (at::hasCUDA()) return c10::Device(c10::kCUDA, 0);
  if (name == "auto") return c10::Device(c10::kCPU);
  return absl::FailedPreconditionError(absl::StrCat("device \"cuda\": ", WhyNoCuda(), "; use cpu or auto"));
}

int CudaDevices() { return at::detail::getCUDAHooks().deviceCount(); }

c10::Device CudaDevice(int rank) {
  return {c10::kCUDA, static_cast<c10::DeviceIndex>(rank % std::max(1, CudaDevices()))};
}

void SetThreads(int threads) {
  RETORT_CHECK(threads > 0);
  at::set_num_threads(threads);
}

}  // namespace retort
