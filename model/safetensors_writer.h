// Writes a safetensors file tensor by tensor, so that one of them is in memory at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file.h"

namespace retort {

struct SafetensorsEntry {
  std::string name;
  c10::ScalarType dtype = c10::ScalarType::Float;
  std::vector<int64_t> shape;

  uint64_t bytes() const;
};

// One thread at a time. What is not committed leaves no file.
class SafetensorsWriter {
 public:
  // The header is written at once, in the order of `entries`. `metadata` goes under "__metadata__". Errors:
  // kInvalidArgument (a name or dtype that has no place in the format), and as AtomicFile::Create.
  static absl::StatusOr<SafetensorsWriter> Create(const std::string& path, std::vector<SafetensorsEntry> entries,
                                                  const std::map<std::string, std::string>& metadata);

  // The next entry's tensor, of its dtype and shape, on any device.
  absl::Status Append(const at::Tensor& tensor);
  // All entries must have come.
  absl::Status Commit();

 private:
  SafetensorsWriter(AtomicFile file, std::vector<SafetensorsEntry> entries)
      : file_(std::move(file)), entries_(std::move(entries)) {}

  AtomicFile file_;
  std::vector<SafetensorsEntry> entries_;
  size_t next_ = 0;
};

}  // namespace retort
