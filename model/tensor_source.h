// Where a model's tensors come from: a folder of safetensors, or a GGUF file under the names a Hugging Face folder
// would use.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace retort {

class TensorSource {
 public:
  virtual ~TensorSource() = default;

  virtual std::vector<std::string> Names() const = 0;  // sorted
  virtual bool Has(const std::string& name) const = 0;
  // On the CPU; may alias a mapped file: do not write to it. Errors: kNotFound, kInvalidArgument.
  virtual absl::StatusOr<at::Tensor> Get(const std::string& name) = 0;
  // The shape that Get's tensor would have, without the work of making it.
  virtual absl::StatusOr<std::vector<int64_t>> ShapeOf(const std::string& name) {
    const absl::StatusOr<at::Tensor> tensor = Get(name);
    if (!tensor.ok()) return tensor.status();
    return tensor->sizes().vec();
  }
};

}  // namespace retort
