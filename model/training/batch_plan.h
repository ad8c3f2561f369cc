// What a micro-batch asks of the model: positions, and which rows are trained against what.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "model/training_model.h"

namespace retort {

struct BatchPlan {
  std::vector<int64_t> positions;  // [tokens], from 0 in each sample
  std::vector<int64_t> rows;       // [trained], ascending: rows of hidden states that predict a trained label
  std::vector<int64_t> targets;    // [trained]: the labels they predict
  int64_t longest_sample = 0;
};

// Errors: kInvalidArgument (lengths or offsets that contradict each other, ids or labels outside the vocabulary; says
// where).
absl::StatusOr<BatchPlan> PlanBatch(const MicroBatch& batch, int64_t vocab_size);

}  // namespace retort
