// The life of one task's placement: running, completed, failed, lost. Functions over State, called under Core's lock.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "coordinator/state.h"
#include "retort/v1/task_service.pb.h"

namespace retort {

// The placement has a process: its worker says so.
void MarkRunning(State* state, JobEntry* job, TaskEntry* task);

// The placement's process itself has said something.
void MarkHeard(State* state, JobEntry* job, TaskEntry* task);

// Ends the placement by the coordinator's will; its worker kills the process. `to` is where the task goes.
void WithdrawPlacement(State* state, JobEntry* job, TaskEntry* task, v1::TaskState to);

enum class Blame {
  kJob,     // charged to the stage's budget, once for all failures within one_failure_within: one event caused them
  kNobody,  // its worker ended it for reasons of its own
};

// The placement is over through a failure of process, machine or network. The task waits to be placed again, or, with
// the stage's budget spent, the job fails.
void LosePlacement(State* state, JobEntry* job, TaskEntry* task, const std::string& error, Blame blame = Blame::kJob);

// How long a task waits after its n-th failure in a row: the first retry is immediate.
absl::Duration RetryBackoff(int failures_in_a_row);

// Replays are harmless. Errors: kFailedPrecondition (fenced), kInvalidArgument (the result lacks what its stage must
// yield).
absl::Status CompleteTask(State* state, const v1::TaskRef& ref, const v1::TaskResult& result);

// Replays are harmless. `damaged_artifact_id`: a folder that the task needed and the artifact store has lost; where it
// is the newest checkpoint, the job goes on from the one before. Errors: kFailedPrecondition (fenced), kInvalidArgument
// (no cause).
absl::Status FailTask(State* state, const v1::TaskRef& ref, v1::FailureCause cause, const std::string& message,
                      const std::string& damaged_artifact_id);

// Errors: kFailedPrecondition (fenced), kInvalidArgument (not a training task, or a loss without a step).
absl::Status RegisterCheckpoint(State* state, const v1::TaskRef& ref, const v1::Checkpoint& checkpoint,
                                int64_t size_bytes);

// Returns the gang generation that the coordinator wants; 0 where there is none. Errors: kFailedPrecondition (fenced).
absl::StatusOr<uint64_t> ReportProgress(State* state, const v1::ReportProgressRequest& request);

// What to do. Errors: kFailedPrecondition (fenced), kInternal.
absl::StatusOr<v1::GetTaskResponse> GetTask(State* state, const v1::TaskRef& ref);

}  // namespace retort
