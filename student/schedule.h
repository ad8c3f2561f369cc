// Learning rates over the steps, as transformers' schedulers give them.
#pragma once

#include <cstdint>

#include "retort/v1/job.pb.h"

namespace retort {

struct ScheduleOptions {
  v1::LrSchedulerType type = v1::LR_SCHEDULER_TYPE_LINEAR;
  double learning_rate = 0;
  int64_t warmup_steps = 0;  // as WarmupSteps gives it
  int64_t total_steps = 0;
};

// warmup_steps where it is set, else the ratio's share of the steps, rounded up.
int64_t WarmupSteps(const v1::TrainingSpec& training, int64_t total_steps);

// The rate that step `step` (0-based) uses. With a warm-up the first step's is 0, as in transformers.
double LearningRate(const ScheduleOptions& options, int64_t step);

}  // namespace retort
