// Which samples each optimizer step trains on.
//
// A pure function of the number of samples and a few settings: never of the number of workers or of what happened
// before. So a step's number alone says where training stands, and whoever holds the weights after step N knows what
// comes next.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace retort {

struct EpochPlanOptions {
  int64_t samples = 0;
  uint64_t seed = 0;
  bool shuffle = true;
  double epochs = 1.0;
  int64_t max_steps = 0;  // > 0 overrides epochs
  int64_t micro_batch_samples = 1;
  int64_t micro_batches_per_step = 1;
};

// Where a step begins: how many epochs are behind it, and how many samples of the current one.
struct Cursor {
  int64_t epoch = 0;
  int64_t index = 0;
  bool operator==(const Cursor&) const = default;
};

// Every epoch is a permutation of all samples, cut into steps of micro_batches_per_step micro-batches of
// micro_batch_samples samples. The last step of an epoch has what is left: fewer micro-batches, the last of them maybe
// shorter (as transformers trains with drop_last=False). Thread-compatible.
class EpochPlan {
 public:
  // Errors: kInvalidArgument (no samples, a setting out of range, more than 2^31 steps).
  static absl::StatusOr<EpochPlan> Make(const EpochPlanOptions& options);

  int64_t total_steps() const { return total_steps_; }
  int64_t steps_per_epoch() const { return steps_per_epoch_; }

  // Before step `step` (0-based; total_steps(): the end).
  Cursor CursorAt(int64_t step) const;
  // Epochs behind step `step`, with fractions.
  double EpochsAt(int64_t step) const;

  // The samples of step `step` (0-based), by micro-batch; none of them empty.
  std::vector<std::vector<int64_t>> Step(int64_t step) const;

 private:
  EpochPlan(const EpochPlanOptions& options, int64_t steps_per_epoch, int64_t total_steps)
      : options_(options), steps_per_epoch_(steps_per_epoch), total_steps_(total_steps) {}
  const std::vector<int64_t>& Order(int64_t epoch) const;

  EpochPlanOptions options_;
  int64_t steps_per_epoch_;
  int64_t total_steps_;
  mutable std::vector<int64_t> order_;  // of order_epoch_
  mutable int64_t order_epoch_ = -1;
};

// The numbers 0..count-1 in an order that depends on seed and epoch alone (Fisher-Yates over Philox), the same on every
// machine.
std::vector<int64_t> Permutation(int64_t count, uint64_t seed, int64_t epoch);

}  // namespace retort
