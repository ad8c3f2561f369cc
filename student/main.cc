// retort-student: one rank of a training, the export at a job's end, and without a job the conversion of models and the
// merging of adapters.
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/rpc/task_client.h"
#include "model/device.h"
#include "model/torch_status.h"
#include "student/convert_command.h"
#include "student/export_task.h"
#include "student/merge_command.h"
#include "student/train_task.h"

int main(int argc, char** argv) {
  // Need no GPU, and leave it alone.
  if (argc > 1 && absl::string_view(argv[1]) == "convert") return retort::ConvertCommand(argc - 1, argv + 1);
  if (argc > 1 && absl::string_view(argv[1]) == "merge") return retort::MergeCommand(argc - 1, argv + 1);
  retort::OpenCudaIfPresent();
  return retort::RunTask(
      argc, argv, "student", [](retort::TaskContext& context) -> absl::StatusOr<retort::v1::TaskResult> {
        return retort::CatchTorchErrors(context.ref().task_id(), [&]() -> absl::StatusOr<retort::v1::TaskResult> {
          if (context.task().has_train()) return retort::RunTrainTask(context);
          if (context.task().has_export_()) return retort::RunExportTask(context);
          return absl::UnimplementedError(
              absl::StrCat(context.ref().task_id(), " is no task for retort-student of this version"));
        });
      });
}
