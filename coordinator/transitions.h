// Which state may follow which, for jobs, stages and tasks: the only table of them.
#pragma once

#include "absl/strings/string_view.h"
#include "retort/v1/job.pb.h"

namespace retort {

bool IsLegal(v1::JobState from, v1::JobState to);
bool IsLegal(v1::StageState from, v1::StageState to);
bool IsLegal(v1::TaskState from, v1::TaskState to);

// "RUNNING" for JOB_STATE_RUNNING, and so on; as states stand in logs.
absl::string_view ShortName(v1::JobState state);
absl::string_view ShortName(v1::StageState state);
absl::string_view ShortName(v1::TaskState state);
// "train" for STAGE_TRAIN; as stages stand in task ids and logs.
absl::string_view ShortName(v1::Stage stage);

// Whether a job in that state never moves again by itself.
bool HasEnded(v1::JobState state);
// Whether a task in that state has a process, or soon will.
bool IsPlaced(v1::TaskState state);

}  // namespace retort
