// Models by name for benchmarks: real shapes, without their weights.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config.h"

namespace retort::bench {

std::vector<std::string> ShapeNames();

// Errors: kNotFound (a name that is not one of them).
absl::StatusOr<ModelConfig> ShapeOf(const std::string& name);

}  // namespace retort::bench
