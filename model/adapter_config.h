// adapter_config.json.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "absl/status/statusor.h"
#include "model/lora.h"

namespace retort::internal {

struct AdapterConfig {
  LoraConfig config;                // as the file has it
  bool targets_in_tensors = false;  // "all-linear", a pattern or nothing: modules without tensors are no mistake
};

// Everything that changes the arithmetic and is not supported is refused by its key. Errors: kInvalidArgument,
// kUnimplemented.
absl::StatusOr<AdapterConfig> ParseAdapterConfig(const nlohmann::ordered_json& object);

// What PEFT writes of the same.
nlohmann::ordered_json AdapterConfigToJson(const LoraConfig& config);

}  // namespace retort::internal
