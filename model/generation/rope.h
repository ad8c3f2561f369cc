// Rotary position tables.
#pragma once

#include <ATen/core/Tensor.h>

#include "model/config.h"

namespace retort::internal {

struct RopeTable {
  at::Tensor cos;  // [positions, head_dim / 2], f32, on the CPU
  at::Tensor sin;  // the same
};

// As transformers computes them (f32 throughout): inverse frequencies, scaled as the config says, times positions.
RopeTable MakeRopeTable(const ModelConfig& config, int64_t positions);

}  // namespace retort::internal
