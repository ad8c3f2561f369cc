// The protocol's enums as words. The words are stable: scripts read them in --json.
#pragma once

#include <string>

#include "retort/v1/job.pb.h"
#include "retort/v1/worker.pb.h"

namespace retort::cli {

std::string StageName(v1::Stage stage);            // "generate"
std::string JobStateName(v1::JobState state);      // "succeeded"
std::string StageStateName(v1::StageState state);  // "running"
std::string TaskStateName(v1::TaskState state);    // "waiting"
std::string WorkerStateName(v1::WorkerState state);

bool HasEnded(v1::JobState state);

// "train.0.1" of "quickstart-3fa2c1.train.0.1".
std::string ShortTaskId(const std::string& task_id);

}  // namespace retort::cli
