// retort-curate: turns traces into a dataset, and answers into accuracies.
#include "common/rpc/task_client.h"
#include "curate/tasks.h"

namespace retort::curate {
namespace {

absl::StatusOr<v1::TaskResult> Run(TaskContext& context) {
  switch (context.task().task_case()) {
    case v1::GetTaskResponse::kCurate:
      return RunCurateTask(context, context.task().curate());
    case v1::GetTaskResponse::kJudge:
      return RunJudgeTask(context, context.task().judge());
    default:
      return absl::InternalError(
          "retort-curate was given a task of another role; coordinator and worker may be of different versions");
  }
}

}  // namespace
}  // namespace retort::curate

int main(int argc, char** argv) { return retort::RunTask(argc, argv, "curate", retort::curate::Run); }
