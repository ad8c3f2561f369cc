// `retort-teacher task`: the generate stage of a job, and the generating half of an evaluation.
#pragma once

#include "absl/status/statusor.h"
#include "common/rpc/task_client.h"

namespace retort {

absl::StatusOr<v1::TaskResult> RunGenerateTask(TaskContext& context);

}  // namespace retort
