// A model's tensors as plain floating-point ones, whatever way the files keep them.
#pragma once

#include <c10/core/ScalarType.h>

#include <memory>
#include <optional>
#include <string>

#include "model/config.h"
#include "model/tensor_source.h"

namespace retort {

// `source` with experts that are stacked into one tensor cut apart (where `source` is asked for one of them), float8
// blocks widened, and what bitsandbytes quantised widened, to `widened`; without it float8 becomes f32, and a 4-bit
// matrix the dtype that it was quantised from, an 8-bit one f32. All else is given as it is stored. The scales and
// other parts are not listed. Errors also: kInvalidArgument (parts that are damaged or contradict each other).
// `config` must outlive it.
std::unique_ptr<TensorSource> PlainTensors(TensorSource& source, const ModelConfig& config,
                                           std::optional<c10::ScalarType> widened);

}  // namespace retort
