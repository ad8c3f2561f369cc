#include "worker/resources.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/file.h"

namespace retort::worker {
namespace {

// Contents of a small file of /proc or /sys, whose size is not known beforehand; empty when it cannot be read.
std::string ReadSmallFile(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  char buffer[8192];
  const ssize_t size = fd.valid() ? read(fd.get(), buffer, sizeof(buffer)) : -1;
  return size > 0 ? std::string(buffer, static_cast<size_t>(size)) : std::string();
}

// The CPUs that the cgroup lets this process use per period; infinity when it sets no limit.
double CgroupCpus() {
  const std::vector<std::string> v2 = absl::StrSplit(ReadSmallFile("/sys/fs/cgroup/cpu.max"), ' ');
  double quota = 0;
  double period = 0;
  if (v2.size() == 2 && absl::SimpleAtod(v2[0], &quota) &&
      absl::SimpleAtod(absl::StripAsciiWhitespace(v2[1]), &period) && period > 0) {
    return quota / period;
  }
  if (absl::SimpleAtod(absl::StripAsciiWhitespace(ReadSmallFile("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")), &quota) &&
      absl::SimpleAtod(absl::StripAsciiWhitespace(ReadSmallFile("/sys/fs/cgroup/cpu/cpu.cfs_period_us")), &period) &&
      quota > 0 && period > 0) {
    return quota / period;
  }
  return std::numeric_limits<double>::infinity();
}

}  // namespace

std::vector<DriverGpu> FilterVisible(const std::vector<DriverGpu>& gpus, const char* visible_devices) {
  if (visible_devices == nullptr) return gpus;
  std::vector<DriverGpu> visible;
  for (const std::string& word : std::vector<std::string>(absl::StrSplit(visible_devices, ','))) {
    const absl::string_view name = absl::StripAsciiWhitespace(word);
    int index = -1;
    const bool is_index = absl::SimpleAtoi(name, &index);
    const auto named = std::find_if(gpus.begin(), gpus.end(), [&](const DriverGpu& gpu) {
      return is_index ? gpu.index == index : !name.empty() && absl::StartsWith(gpu.uuid, name);
    });
    if (named == gpus.end()) break;
    visible.push_back(*named);
  }
  return visible;
}

int CountCpuCores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cores =
      sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
  const double quota = CgroupCpus();
  if (quota < cores) cores = static_cast<int>(quota) + (quota > static_cast<int>(quota) ? 1 : 0);
  return std::max(cores, 1);
}

int64_t DetectMemoryBytes(const std::string& root) {
  int64_t memory_bytes = 0;
  for (const std::string& line :
       std::vector<std::string>(absl::StrSplit(ReadSmallFile(root + "/proc/meminfo"), '\n'))) {
    const std::vector<std::string> fields = absl::StrSplit(line, ' ', absl::SkipEmpty());
    int64_t kibibytes = 0;
    if (fields.size() >= 2 && fields[0] == "MemTotal:" && absl::SimpleAtoi(fields[1], &kibibytes))
      memory_bytes = kibibytes * 1024;
  }
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    int64_t limit = 0;
    if (absl::SimpleAtoi(absl::StripAsciiWhitespace(ReadSmallFile(root + path)), &limit) && limit > 0) {
      memory_bytes = memory_bytes == 0 ? limit : std::min(memory_bytes, limit);
    }
  }
  return memory_bytes;
}

v1::WorkerResources DetectResources(int cpu_slots) {
  v1::WorkerResources resources;
  const int cores = CountCpuCores();
  resources.set_cpu_cores(cores);
  resources.set_cpu_slots(cpu_slots > 0 ? cpu_slots : std::max(4, cores));
  resources.set_memory_bytes(DetectMemoryBytes());
  for (const DriverGpu& gpu : FilterVisible(ListDriverGpus(), std::getenv("CUDA_VISIBLE_DEVICES"))) {
    v1::Gpu* described = resources.add_gpus();
    described->set_index(gpu.index);
    described->set_name(gpu.name);
    described->set_memory_bytes(gpu.memory_bytes);
  }
  return resources;
}

}  // namespace retort::worker
