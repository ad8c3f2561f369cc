// How bitsandbytes keeps quantised matrices in safetensors, beside the weight's name.
//
// 4 bits: NAME (uint8, two codes a byte), NAME.absmax, NAME.quant_map, with double quantisation NAME.nested_absmax and
// NAME.nested_quant_map, and NAME.quant_state.bitsandbytes__nf4 (or __fp4): a JSON object in a uint8 tensor. 8 bits:
// NAME (int8) and the module's SCB, the largest magnitude of each row; weight_format says nothing any more.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/quantized/quantized_matrix.h"
#include "model/tensor_source.h"

namespace retort {

// The matrix of a module's weight `name` ("...q_proj.weight"), on the CPU; its tensors may alias a mapped file. Nothing
// where the tensor is stored as it is. Errors: kInvalidArgument (metadata that is damaged or contradicts the tensors:
// says which), kNotFound (a part is missing).
absl::StatusOr<std::optional<QuantizedMatrix>> ReadQuantized(TensorSource& source, const std::string& name);

// Whether a tensor is such a part of another one, to be passed over where tensors are listed.
bool IsQuantizedPart(const TensorSource& source, absl::string_view name);

// The tensors of `matrix` as bitsandbytes saves them, by name, the weight first.
std::vector<std::pair<std::string, at::Tensor>> QuantizedParts(const QuantizedMatrix& matrix, const std::string& name);

}  // namespace retort
