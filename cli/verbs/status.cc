#include <unistd.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/render/job_json.h"
#include "cli/render/job_text.h"
#include "cli/render/terminal.h"
#include "cli/watch.h"

namespace retort::cli {
namespace {

struct Arguments {
  std::string job;
  bool watch = false;
};

int Status(const Globals& globals, const Arguments& arguments) {
  const auto client = Connect(globals);
  if (!client.ok()) return Fail(client.status());
  auto job = GetJob(*client, arguments.job);
  if (!job.ok()) return Fail(job.status());
  if (arguments.watch) {
    const std::string job_id = job->job_id();
    job = WatchUntilEnd(*client, job_id);
    if (absl::IsCancelled(job.status())) return kExitInterrupted;
    // The stream leaves out what only the end knows.
    if (job.ok()) job = GetJob(*client, job_id);
    if (!job.ok()) return Fail(job.status());
  }
  if (globals.json) {
    PrintJson(JobToJson(*job));
  } else {
    std::fputs(StatusText(*job, {.terminal = DescribeTerminal(STDOUT_FILENO)}).c_str(), stdout);
  }
  return kExitDone;
}

}  // namespace

void AddStatus(CLI::App* app, Context* context) {
  CLI::App* verb = AddVerb(app, context, "status", "Show a job: stages, outcomes, why it waits, loss, failures");
  auto arguments = std::make_shared<Arguments>();
  verb->add_option("JOB", arguments->job, "Job id, the beginning of one, or a job's name (its newest)")->required();
  verb->add_flag("-w,--watch", arguments->watch, "Follow it until it has ended");
  verb->callback([context, arguments] { context->exit_code = Status(context->globals, *arguments); });
}

}  // namespace retort::cli
