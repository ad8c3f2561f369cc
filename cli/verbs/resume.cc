#include "cli/verbs/change_job.h"

namespace retort::cli {

void AddResume(CLI::App* app, Context* context) {
  AddJobVerb(app, context, "resume", "Put a failed or cancelled job back to work from what it has finished",
             "ResumeJob", &v1::JobService::Stub::ResumeJob);
}

}  // namespace retort::cli
