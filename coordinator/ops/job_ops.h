// The life of a job: submitted, carried from stage to stage, ended. Functions over State, called under Core's lock.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "coordinator/state.h"

namespace retort {

// Infrastructure failures that a failed job's message quotes.
inline constexpr int kRecentErrorsKept = 5;

// Errors: kInvalidArgument (the spec). A known request id gives the job it made.
absl::StatusOr<std::string> SubmitJob(State* state, const std::string& request_id, const v1::JobSpec& spec);

// Harmless on a job that has ended. Errors: kNotFound, kInvalidArgument (ambiguous name).
absl::StatusOr<v1::JobState> CancelJob(State* state, const std::string& request_id, const std::string& name);

// Errors: kFailedPrecondition (succeeded), kNotFound, kInvalidArgument.
absl::StatusOr<v1::JobState> ResumeJob(State* state, const std::string& request_id, const std::string& name);

// Ends the job and its stage as failed, and its tasks as cancelled.
void FailJob(State* state, JobEntry* job, const std::string& message);

// Carries the job on as far as its tasks' states allow: to the next group, the next stage, the end. Call after a task
// has completed, and when the grace of its peers is over.
void AdvanceJob(State* state, JobEntry* job);

// When AdvanceJob should be called although nothing happens; infinite future: never.
absl::Time NextAdvance(const State& state, const JobEntry& job);

// The stage that runs; null in a job that has ended.
internal::StageRecord* RunningStage(JobEntry* job);
const internal::StageRecord* RunningStage(const JobEntry& job);

// The group that runs.
TaskGroup RunningGroup(const JobEntry& job, const internal::StageRecord& stage);

// Refills the failure budget of the job's running stage: it has made progress.
void RefillBudget(State* state, JobEntry* job);

}  // namespace retort
