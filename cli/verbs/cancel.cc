#include "cli/verbs/change_job.h"

namespace retort::cli {

void AddCancel(CLI::App* app, Context* context) {
  AddJobVerb(app, context, "cancel", "Stop a job; `resume` takes it up again from what it has finished", "CancelJob",
             &v1::JobService::Stub::CancelJob);
}

}  // namespace retort::cli
