// Worker daemons: registration, heartbeats, exits of their tasks, silence. Functions over State, called under Core's
// lock.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/state.h"

namespace retort {

// Takes a daemon in. Tasks placed on it that it still runs go on; what an earlier daemon of the same id ran is lost.
// Errors: kInvalidArgument, kAborted (an older incarnation than the known one).
absl::Status RegisterWorker(State* state, const v1::RegisterWorkerRequest& request);

// Errors: kNotFound (unknown: register again), kAborted (an older incarnation).
absl::Status Heartbeat(State* state, const v1::HeartbeatRequest& request);

// Replays, and reports about placements that are over, are harmless. Errors: kNotFound, kAborted.
absl::Status ReportTaskExit(State* state, const v1::ReportTaskExitRequest& request);

// A task failed on that worker. One that keeps failing them gets no new ones for a while, unless nobody else offers
// what it does.
void NoteFailure(State* state, const std::string& worker_id);

// kNotFound or kAborted when the daemon has to register again or has been replaced.
absl::StatusOr<WorkerEntry*> CurrentWorker(State* state, const std::string& worker_id,
                                           const std::string& incarnation_id);

// What the worker should run.
v1::WatchAssignmentsResponse AssignmentsOf(const WorkerEntry& worker);

// Ages workers by their silence, fences the tasks of lost ones, and gives up placements that never showed a process,
// lost it unseen, or whose process says nothing any more. Returns when to call again.
absl::Time CheckWorkers(State* state);

// All workers and tasks have been heard now: for a coordinator that was itself not running for a while.
void ForgiveSilence(State* state);

// What a task's exit says, e.g. "killed by signal 9 (KILL)".
std::string DescribeExit(const v1::TaskExit& exit);

}  // namespace retort
