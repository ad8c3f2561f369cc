// What cancel and resume share: one call about one job that answers with the job's new state.
#pragma once

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/render/names.h"
#include "common/id.h"

namespace retort::cli {

// `call` is a method of JobService::Stub, named `rpc` in errors.
template <typename Request, typename Response>
int ChangeJob(const Globals& globals, const std::string& name, const char* rpc,
              grpc::Status (v1::JobService::Stub::*call)(grpc::ClientContext*, const Request&, Response*)) {
  const auto client = Connect(globals);
  if (!client.ok()) return Fail(client.status());
  const auto job = GetJob(*client, name);
  if (!job.ok()) return Fail(job.status());
  Request request;
  request.set_request_id(NewRequestId());
  request.set_job_id(job->job_id());
  const auto response =
      UnaryWithRetry<Response>(rpc, ClientRetry(), [&](grpc::ClientContext* context, Response* response) {
        return (*client->jobs.*call)(context, request, response);
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

// Adds a verb that takes one job.
template <typename Request, typename Response>
void AddJobVerb(CLI::App* app, Context* context, const std::string& verb_name, const std::string& description,
                const char* rpc,
                grpc::Status (v1::JobService::Stub::*call)(grpc::ClientContext*, const Request&, Response*)) {
  CLI::App* verb = AddVerb(app, context, verb_name, description);
  auto job = std::make_shared<std::string>();
  verb->add_option("JOB", *job, "Job id, the beginning of one, or a job's name (its newest)")->required();
  verb->callback([=] { context->exit_code = ChangeJob<Request, Response>(context->globals, *job, rpc, call); });
}

}  // namespace retort::cli
