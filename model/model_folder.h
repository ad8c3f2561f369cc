// What stands in a model's folder beside its weights.
#pragma once

#include <c10/core/ScalarType.h>

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "absl/status/status.h"

namespace retort {

// "bfloat16", "float16", or "float32" for all else.
const char* DtypeName(c10::ScalarType dtype);

// Copies generation config, tokenizer and chat template, as far as they are there; the latter two from
// `tokenizer_folder` unless it is empty.
absl::Status CopyModelFiles(const std::string& source_folder, const std::string& tokenizer_folder,
                            const std::string& folder);

// Makes `config` (of a config.json) that of weights which are all stored in `dtype`, whatever was widened or set aside
// on the way to them.
void DescribePlainWeights(c10::ScalarType dtype, nlohmann::json& config);

}  // namespace retort
