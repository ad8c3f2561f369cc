// The safetensors of a model folder, single or sharded.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "model/tensor_source.h"

namespace retort {

// Shards are mapped when a tensor of theirs is first asked for. One thread calls it at a time. Errors: kNotFound (no
// weights), kInvalidArgument (a damaged index).
absl::StatusOr<std::unique_ptr<TensorSource>> OpenSafetensorsFolder(const std::string& folder);

}  // namespace retort
