#include "cli/render/names.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace retort::cli {
namespace {

// "running" of (TASK_STATE_RUNNING, "TASK_STATE_"); a value of a newer protocol is its number.
template <typename Enum>
std::string Word(Enum value, const std::string& full_name, size_t prefix_bytes) {
  if (full_name.size() <= prefix_bytes) return absl::StrCat(static_cast<int>(value));
  return absl::AsciiStrToLower(full_name.substr(prefix_bytes));
}

}  // namespace

std::string StageName(v1::Stage stage) { return Word(stage, v1::Stage_Name(stage), sizeof("STAGE_") - 1); }
std::string JobStateName(v1::JobState state) { return Word(state, v1::JobState_Name(state), sizeof("JOB_STATE_") - 1); }
std::string StageStateName(v1::StageState state) {
  return Word(state, v1::StageState_Name(state), sizeof("STAGE_STATE_") - 1);
}
std::string TaskStateName(v1::TaskState state) {
  return Word(state, v1::TaskState_Name(state), sizeof("TASK_STATE_") - 1);
}
std::string WorkerStateName(v1::WorkerState state) {
  return Word(state, v1::WorkerState_Name(state), sizeof("WORKER_STATE_") - 1);
}

bool HasEnded(v1::JobState state) {
  return state == v1::JOB_STATE_SUCCEEDED || state == v1::JOB_STATE_FAILED || state == v1::JOB_STATE_CANCELLED;
}

std::string ShortTaskId(const std::string& task_id) {
  size_t end = task_id.size();
  for (int part = 0; part < 3; ++part) {
    if (end == 0) return task_id;
    end = task_id.rfind('.', end - 1);
    if (end == std::string::npos) return task_id;
  }
  return task_id.substr(end + 1);
}

}  // namespace retort::cli
