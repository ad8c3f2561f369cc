// Rotary position tables.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "model/config.h"

namespace retort::internal {

struct RopeTable {
  at::Tensor cos;  // [positions, rope.dim / 2], f32, on the CPU, times the attention factor
  at::Tensor sin;  // the same
};

// As transformers computes them (f32 throughout): inverse frequencies, scaled as the config says, times positions.
// `long_factors`: longrope's, for sequences beyond the original context (RopeConfig::UsesLongFactors).
RopeTable MakeRopeTable(const ModelConfig& config, int64_t positions, bool long_factors = false);

// The tables of both kinds of sequence, grown as positions are asked for. One thread at a time.
class RopeTables {
 public:
  explicit RopeTables(const ModelConfig& config) : config_(config) {}
  // For a sequence of `tokens`; covers at least `positions`. Lives until the next call that grows it.
  const RopeTable& For(int64_t tokens, int64_t positions);
  // The rows of samples that lie end to end, [offsets.back(), rope.dim / 2]; each begins at position 0. `longest`: the
  // length of the longest.
  RopeTable ForSamples(const std::vector<int64_t>& offsets, int64_t longest);

 private:
  ModelConfig config_;
  RopeTable tables_[2];
};

}  // namespace retort::internal
