// A rank of a training: joins its gang, trains, joins again when the gang changes, and delivers the result.
#pragma once

#include "absl/status/statusor.h"
#include "common/rpc/task_client.h"
#include "retort/v1/task_service.pb.h"

namespace retort {

// Runs `context`'s TrainTask to its end. Errors: whatever ends the training for good; a lost peer or a coordinator that
// restarts does not.
absl::StatusOr<v1::TaskResult> RunTrainTask(TaskContext& context);

}  // namespace retort
