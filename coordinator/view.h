// What users see of the state.
#pragma once

#include "coordinator/state.h"
#include "retort/v1/job.pb.h"
#include "retort/v1/worker.pb.h"

namespace retort {

// The whole job.
v1::Job ViewJob(const State& state, const JobEntry& job);
// Without spec details, tasks and losses.
v1::Job SummariseJob(const State& state, const JobEntry& job);
v1::WorkerStatus ViewWorker(const State& state, const WorkerEntry& worker);

}  // namespace retort
