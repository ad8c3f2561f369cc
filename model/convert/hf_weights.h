// The safetensors of a folder that is being written.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "absl/status/status.h"
#include "model/config.h"
#include "model/convert/convert.h"
#include "model/tensor_source.h"

namespace retort {

// Writes every tensor that `config` asks for from `source` (plain floating-point tensors) into `folder`, in
// `format.dtype`, which is set, and quantised as it says; with an index where there are several files. `where` names
// the source in errors.
absl::Status WriteHfWeights(TensorSource& source, const ModelConfig& config, const HfFormat& format,
                            const std::string& where, const std::string& folder);

// config.json's quantization_config, which makes transformers load such weights through bitsandbytes.
nlohmann::json QuantizationConfig(const HfFormat& format);

}  // namespace retort
