// The safetensors format: an 8-byte little-endian header length, a JSON header, then raw tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace retort {

// A mapped file. Tensors alias the mapping and keep it alive; do not write to them. Thread-safe once open.
class SafetensorsFile {
 public:
  // Checks the whole header: bounds, overlaps, gaps, shapes against sizes, dtypes. Errors: kNotFound, kInvalidArgument
  // (what is wrong, in which file).
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  const std::vector<std::string>& names() const;  // sorted
  const std::map<std::string, std::string>& metadata() const;
  bool Has(const std::string& name) const;
  // On the CPU, in the stored dtype. Errors: kNotFound.
  absl::StatusOr<at::Tensor> Get(const std::string& name) const;

 private:
  struct Mapping;
  std::shared_ptr<const Mapping> mapping_;
};

// A dtype's name in the format; null: it has none.
const char* SafetensorsDtypeName(c10::ScalarType dtype);

// Writes tensors (made contiguous, copied to the CPU) sorted by name, with no paths or times: the same tensors give the
// same bytes. Atomic, fsynced. `metadata` goes under "__metadata__"; transformers wants {"format": "pt"}.
absl::Status WriteSafetensors(const std::string& path, const std::map<std::string, at::Tensor>& tensors,
                              const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

}  // namespace retort
