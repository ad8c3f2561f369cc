// The protocol's messages as JSON for scripts: the names below are an interface and do not follow the protocol's.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "retort/v1/job.pb.h"
#include "retort/v1/job_service.pb.h"
#include "retort/v1/sample_service.pb.h"
#include "retort/v1/worker.pb.h"

namespace retort::cli {

// {job, name, state, message, submitted_at, finished_at, output_dir, stages: [{stage, state, outcomes, progress,
// seconds, tasks}], losses, evaluations, accuracies, artifacts, adapter_sha256, manifest_sha256, versions}. Times are
// RFC 3339, null when not reached.
nlohmann::json JobToJson(const v1::Job& job);
// Only {job, name, state, message, stage, submitted_at, finished_at}; `stage` is the one at work.
nlohmann::json JobSummaryToJson(const v1::Job& job);
nlohmann::json WorkerToJson(const v1::WorkerStatus& worker);
nlohmann::json SampleSetToJson(const v1::SampleSetInfo& set);
nlohmann::json TraceToJson(const v1::Prompt& prompt, const v1::Trace& trace);
nlohmann::json StoreStatsToJson(const v1::GetStoreStatsResponse& stats);

// What output_dir/result.json holds: {job, state, outcomes, evaluations, accuracies, losses, adapter_sha256,
// manifest_sha256, seconds_by_stage, versions}; what did not run is null or empty.
nlohmann::json ResultJson(const v1::Job& job);

// The stage at work: the first that has not succeeded, else the last.
const v1::StageStatus* CurrentStage(const v1::Job& job);

}  // namespace retort::cli
