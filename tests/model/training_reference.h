// A Llama model with LoRA written as plainly as can be, in f64, differentiated by autograd: what the tests of
// TrainingModel measure it against.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>

#include "model/lora.h"
#include "model/training_model.h"
#include "model/weights.h"

namespace retort::testing {

struct ReferenceResult {
  double loss = 0.0;                           // sum
  std::map<std::string, at::Tensor> gradient;  // by ParameterSlice name, f64
};

ReferenceResult ReferenceForwardBackward(const ModelWeights& weights, const LoraAdapter& adapter,
                                         const MicroBatch& batch, double lora_dropout, uint64_t dropout_key);

}  // namespace retort::testing
