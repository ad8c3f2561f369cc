// What this machine offers.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "retort/v1/worker.pb.h"

namespace retort::worker {

// A GPU as the driver names it.
struct DriverGpu {
  int index = 0;  // NVML's, which is CUDA's under CUDA_DEVICE_ORDER=PCI_BUS_ID
  std::string uuid;
  std::string name;
  int64_t memory_bytes = 0;
};

// GPUs that the NVIDIA driver reports; none where there is no driver. Opens libnvidia-ml at run time.
std::vector<DriverGpu> ListDriverGpus();

// Those of `gpus` that `visible_devices` (the value of CUDA_VISIBLE_DEVICES: indices or UUID prefixes, ending at the
// first that names no GPU, as CUDA reads it) leaves; all when it is null.
std::vector<DriverGpu> FilterVisible(const std::vector<DriverGpu>& gpus, const char* visible_devices);

// CPUs this process may use: its affinity, cut by the cgroup's quota (rounded up).
int CountCpuCores();

// Bytes of memory: the machine's, cut by the cgroup's limit. Reads under `root` ("" for the real files).
int64_t DetectMemoryBytes(const std::string& root = "");

// Everything. `cpu_slots` 0: max(4, cores).
v1::WorkerResources DetectResources(int cpu_slots);

}  // namespace retort::worker
