// Whether tensors are those that a config asks for.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace retort {

// `shape_of`: a tensor's shape by its name; kNotFound for what is not there. `where` names the model in errors. Errors:
// kNotFound, kInvalidArgument (tensor and shapes), and those of ParseModelConfig.
absl::Status CheckTensorsAgainstConfig(
    const nlohmann::json& config, const std::string& where,
    const std::function<absl::StatusOr<std::vector<int64_t>>(const std::string& name)>& shape_of);

}  // namespace retort
