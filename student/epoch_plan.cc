#include "student/epoch_plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/philox.h"

namespace retort {

std::vector<int64_t> Permutation(int64_t count, uint64_t seed, int64_t epoch) {
  RETORT_CHECK(count >= 0);
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = count - 1; i > 0; --i) {
    const PhiloxBlock block = PhiloxAt(seed, static_cast<uint64_t>(i), static_cast<uint64_t>(epoch));
    const uint64_t bits = (uint64_t{block[1]} << 32) | block[0];
    // The high word of a 128-bit product: even up to a bias of count / 2^64.
    const auto j = static_cast<int64_t>((static_cast<unsigned __int128>(bits) * static_cast<uint64_t>(i + 1)) >> 64);
    std::swap(order[i], order[j]);
  }
  return order;
}

absl::StatusOr<EpochPlan> EpochPlan::Make(const EpochPlanOptions& options) {
  if (options.samples < 1) return absl::InvalidArgumentError("there is no sample to train on");
  if (options.micro_batch_samples < 1 || options.micro_batches_per_step < 1 ||
      options.micro_batches_per_step > (int64_t{1} << 20) || options.micro_batch_samples > (int64_t{1} << 20)) {
    return absl::InvalidArgumentError(absl::StrCat("per_device_train_batch_size ", options.micro_batch_samples,
                                                   " and gradient_accumulation_steps ", options.micro_batches_per_step,
                                                   " must be between 1 and 1048576"));
  }
  const int64_t step_samples = options.micro_batch_samples * options.micro_batches_per_step;
  const int64_t steps_per_epoch = (options.samples + step_samples - 1) / step_samples;
  double total = static_cast<double>(options.max_steps);
  if (options.max_steps <= 0) {
    if (!(options.epochs > 0)) {
      return absl::InvalidArgumentError(absl::StrCat("num_train_epochs is ", options.epochs, "; it must be above 0"));
    }
    total = std::ceil(options.epochs * static_cast<double>(steps_per_epoch));
  }
  if (!(total <= 2147483647.0)) return absl::InvalidArgumentError(absl::StrCat(total, " steps are too many"));
  return EpochPlan(options, steps_per_epoch, static_cast<int64_t>(total));
}

Cursor EpochPlan::CursorAt(int64_t step) const {
  RETORT_CHECK(step >= 0 && step <= total_steps_);
  return {step / steps_per_epoch_,
          step % steps_per_epoch_ * options_.micro_batch_samples * options_.micro_batches_per_step};
}

double EpochPlan::EpochsAt(int64_t step) const {
  const Cursor cursor = CursorAt(step);
  return static_cast<double>(cursor.epoch) + static_cast<double>(cursor.index) / static_cast<double>(options_.samples);
}

const std::vector<int64_t>& EpochPlan::Order(int64_t epoch) const {
  if (order_epoch_ != epoch) {
    if (options_.shuffle) {
      order_ = Permutation(options_.samples, options_.seed, epoch);
    } else if (order_epoch_ < 0) {
      order_.resize(options_.samples);
      std::iota(order_.begin(), order_.end(), 0);
    }
    order_epoch_ = epoch;
  }
  return order_;
}

std::vector<std::vector<int64_t>> EpochPlan::Step(int64_t step) const {
  RETORT_CHECK(step < total_steps_);
  const Cursor cursor = CursorAt(step);
  const std::vector<int64_t>& order = Order(cursor.epoch);
  const int64_t end =
      std::min(options_.samples, cursor.index + options_.micro_batch_samples * options_.micro_batches_per_step);
  std::vector<std::vector<int64_t>> micro_batches;
  for (int64_t first = cursor.index; first < end; first += options_.micro_batch_samples) {
    const int64_t last = std::min(end, first + options_.micro_batch_samples);
    micro_batches.emplace_back(order.begin() + first, order.begin() + last);
  }
  return micro_batches;
}

}  // namespace retort
