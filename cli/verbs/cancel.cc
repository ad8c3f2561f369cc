#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/render/names.h"
#include "common/id.h"

namespace retort::cli {
namespace {

int Cancel(const Globals& globals, const std::string& name) {
  const auto client = Connect(globals);
  if (!client.ok()) return Fail(client.status());
  const auto job = GetJob(*client, name);
  if (!job.ok()) return Fail(job.status());
  v1::CancelJobRequest request;
  request.set_request_id(NewRequestId());
  request.set_job_id(job->job_id());
  const auto response = UnaryWithRetry<v1::CancelJobResponse>(
      "CancelJob", ClientRetry(), [&](grpc::ClientContext* context, v1::CancelJobResponse* response) {
        return client->jobs->CancelJob(context, request, response);
      });
  if (!response.ok()) return Fail(response.status());
  const std::string state = JobStateName(response->state());
  if (globals.json) {
    PrintJson({{"job", job->job_id()}, {"state", state}});
  } else {
    std::printf("%s %s\n", job->job_id().c_str(), state.c_str());
  }
  return kExitDone;
}

}  // namespace

void AddCancel(CLI::App* app, Context* context) {
  CLI::App* verb = AddVerb(app, context, "cancel", "Stop a job; `resume` takes it up again from what it has finished");
  auto job = std::make_shared<std::string>();
  verb->add_option("JOB", *job, "Job id, the beginning of one, or a job's name (its newest)")->required();
  verb->callback([context, job] { context->exit_code = Cancel(context->globals, *job); });
}

}  // namespace retort::cli
