// Safetensors: the header, and every tensor that it names.
#include <ATen/core/Tensor.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "model/safetensors.h"
#include "tests/fuzz/driver.h"

namespace retort {
namespace {

std::string File(const std::string& header, size_t data_bytes) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[static_cast<size_t>(i)] = static_cast<char>(header.size() >> (8 * i));
  return bytes + header + std::string(data_bytes, '\1');
}

// The file that inputs are read from: in memory, reached by a path.
struct MemoryFile {
  MemoryFile() : fd(memfd_create("fuzz", MFD_CLOEXEC)) {
    if (fd < 0) std::abort();
    std::snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
  }
  int fd;
  char path[32];
};

}  // namespace

std::vector<std::string> Seeds() {
  return {
      File("{}", 0),
      File(R"({"t":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})", 16),
      File(
          R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},)"
          R"("b":{"dtype":"F8_E4M3","shape":[5],"data_offsets":[12,17]},"c":{"dtype":"I64","shape":[],"data_offsets":[17,25]}} )",
          25),
  };
}

}  // namespace retort

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const retort::MemoryFile memory;
  if (ftruncate(memory.fd, 0) != 0 || pwrite(memory.fd, data, size, 0) != static_cast<ssize_t>(size)) std::abort();
  const auto file = retort::SafetensorsFile::Open(memory.path);
  if (!file.ok()) return 0;
  for (const std::string& name : file->names()) {
    const auto tensor = file->Get(name);
    // Reads every byte.
    if (tensor.ok() && tensor->numel() > 0) (void)tensor->contiguous().clone();
  }
  return 0;
}
