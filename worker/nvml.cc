#include <dlfcn.h>

#include "spdlog/spdlog.h"
#include "worker/resources.h"

namespace retort::worker {
namespace {

// The part of NVML's stable C interface that is used here; its headers come with the CUDA toolkit, which a worker does
// not need.
using NvmlDevice = struct NvmlDeviceTag*;
struct NvmlMemory {
  unsigned long long total;
  unsigned long long free;
  unsigned long long used;
};
constexpr int kNvmlSuccess = 0;
constexpr unsigned int kNameBytes = 96;

template <typename Function>
bool Find(void* library, const char* name, Function** function) {
  *function = reinterpret_cast<Function*>(dlsym(library, name));
  return *function != nullptr;
}

}  // namespace

std::vector<DriverGpu> ListDriverGpus() {
  // Never closed: the driver's libraries do not like to be unloaded.
  void* library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return {};
  int (*init)() = nullptr;
  int (*shutdown)() = nullptr;
  int (*get_count)(unsigned int*) = nullptr;
  int (*get_handle)(unsigned int, NvmlDevice*) = nullptr;
  int (*get_name)(NvmlDevice, char*, unsigned int) = nullptr;
  int (*get_uuid)(NvmlDevice, char*, unsigned int) = nullptr;
  int (*get_memory)(NvmlDevice, NvmlMemory*) = nullptr;
  if (!Find(library, "nvmlInit_v2", &init) || !Find(library, "nvmlShutdown", &shutdown) ||
      !Find(library, "nvmlDeviceGetCount_v2", &get_count) ||
      !Find(library, "nvmlDeviceGetHandleByIndex_v2", &get_handle) || !Find(library, "nvmlDeviceGetName", &get_name) ||
      !Find(library, "nvmlDeviceGetUUID", &get_uuid) || !Find(library, "nvmlDeviceGetMemoryInfo", &get_memory)) {
    spdlog::warn("gpus_undetected reason=\"libnvidia-ml.so.1 lacks a function; update the NVIDIA driver\"");
    return {};
  }
  if (const int error = init(); error != kNvmlSuccess) {
    spdlog::warn("gpus_undetected reason=\"nvmlInit gave error {}\"", error);
    return {};
  }
  std::vector<DriverGpu> gpus;
  unsigned int count = 0;
  if (get_count(&count) != kNvmlSuccess) count = 0;
  for (unsigned int index = 0; index < count; ++index) {
    NvmlDevice device = nullptr;
    char name[kNameBytes] = {};
    char uuid[kNameBytes] = {};
    NvmlMemory memory = {};
    if (get_handle(index, &device) != kNvmlSuccess || get_name(device, name, kNameBytes) != kNvmlSuccess ||
        get_uuid(device, uuid, kNameBytes) != kNvmlSuccess || get_memory(device, &memory) != kNvmlSuccess) {
      spdlog::warn("gpu_unusable index={} reason=\"the driver does not describe it\"", index);
      continue;
    }
    gpus.push_back({.index = static_cast<int>(index),
                    .uuid = uuid,
                    .name = name,
                    .memory_bytes = static_cast<int64_t>(memory.total)});
  }
  shutdown();
  return gpus;
}

}  // namespace retort::worker
