// The two tasks that retort-curate runs.
#pragma once

#include "absl/status/statusor.h"
#include "common/rpc/task_client.h"

namespace retort::curate {

// A job's traces to a dataset: reads the sample set, writes train.jsonl and validation.jsonl in the work folder,
// uploads them (each as a blob, both as the artifact "dataset") and records the manifest.
absl::StatusOr<v1::TaskResult> RunCurateTask(TaskContext& context, const v1::CurateTask& task);

// Verdicts over the sample sets of each evaluation. An evaluation that names no verifier compares numbers.
absl::StatusOr<v1::TaskResult> RunJudgeTask(TaskContext& context, const v1::JudgeTask& task);

}  // namespace retort::curate
