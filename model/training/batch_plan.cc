#include "model/training/batch_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "model/sft_example.h"

namespace retort {
namespace {

absl::Status CheckShape(const MicroBatch& batch) {
  const int64_t tokens = static_cast<int64_t>(batch.input_ids.size());
  if (static_cast<int64_t>(batch.labels.size()) != tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("micro-batch: ", tokens, " input_ids but ", batch.labels.size(), " labels; give one per token"));
  }
  const std::vector<int64_t>& offsets = batch.sequence_offsets;
  if (offsets.empty() || offsets.front() != 0 || offsets.back() != tokens ||
      !std::is_sorted(offsets.begin(), offsets.end())) {
    return absl::InvalidArgumentError(
        absl::StrCat("micro-batch: sequence_offsets must rise from 0 to the number of tokens (", tokens, ")"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<BatchPlan> PlanBatch(const MicroBatch& batch, int64_t vocab_size) {
  if (absl::Status shape = CheckShape(batch); !shape.ok()) return shape;
  for (size_t i = 0; i < batch.input_ids.size(); ++i) {
    const int32_t id = batch.input_ids[i];
    const int32_t label = batch.labels[i];
    if (id < 0 || id >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("micro-batch: input_ids[", i, "] = ", id, " is outside the model's vocabulary of ", vocab_size));
    }
    if (label != kIgnoreLabel && (label < 0 || label >= vocab_size)) {
      return absl::InvalidArgumentError(absl::StrCat("micro-batch: labels[", i, "] = ", label, " is neither ",
                                                     kIgnoreLabel, " nor inside the model's vocabulary of ",
                                                     vocab_size));
    }
  }
  BatchPlan plan;
  plan.positions.resize(batch.input_ids.size());
  for (size_t sample = 0; sample + 1 < batch.sequence_offsets.size(); ++sample) {
    const int64_t begin = batch.sequence_offsets[sample];
    const int64_t end = batch.sequence_offsets[sample + 1];
    plan.longest_sample = std::max(plan.longest_sample, end - begin);
    for (int64_t i = begin; i < end; ++i) {
      plan.positions[i] = i - begin;
      if (i + 1 < end && batch.labels[i + 1] != kIgnoreLabel) {
        plan.rows.push_back(i);
        plan.targets.push_back(batch.labels[i + 1]);
      }
    }
  }
  return plan;
}

}  // namespace retort
