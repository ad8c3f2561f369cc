#include "student/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace retort {

int64_t WarmupSteps(const v1::TrainingSpec& training, int64_t total_steps) {
  if (training.warmup_steps() > 0) return training.warmup_steps();
  return static_cast<int64_t>(std::ceil(static_cast<double>(total_steps) * training.warmup_ratio()));
}

double LearningRate(const ScheduleOptions& options, int64_t step) {
  if (options.type == v1::LR_SCHEDULER_TYPE_CONSTANT) return options.learning_rate;
  if (step < options.warmup_steps) {
    return options.learning_rate * (static_cast<double>(step) / static_cast<double>(options.warmup_steps));
  }
  const auto decay_steps = static_cast<double>(std::max<int64_t>(1, options.total_steps - options.warmup_steps));
  const auto past = static_cast<double>(step - options.warmup_steps);
  switch (options.type) {
    case v1::LR_SCHEDULER_TYPE_COSINE:
      return options.learning_rate * std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * past / decay_steps)));
    case v1::LR_SCHEDULER_TYPE_CONSTANT_WITH_WARMUP:
      return options.learning_rate;
    default:  // linear
      return options.learning_rate * std::max(0.0, static_cast<double>(options.total_steps - step) / decay_steps);
  }
}

}  // namespace retort
