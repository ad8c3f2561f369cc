#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/render/format.h"
#include "cli/render/job_json.h"
#include "cli/render/names.h"
#include "cli/render/terminal.h"

namespace retort::cli {
namespace {

int List(const Globals& globals, int limit) {
  const auto client = Connect(globals);
  if (!client.ok()) return Fail(client.status());
  v1::ListJobsRequest request;
  request.set_limit(limit);
  const auto response = UnaryWithRetry<v1::ListJobsResponse>(
      "ListJobs", ClientRetry(), [&](grpc::ClientContext* context, v1::ListJobsResponse* response) {
        return client->jobs->ListJobs(context, request, response);
      });
  if (!response.ok()) return Fail(response.status());
  if (globals.json) {
    nlohmann::json jobs = nlohmann::json::array();
    for (const v1::Job& job : response->jobs()) jobs.push_back(JobSummaryToJson(job));
    PrintJson({{"jobs", std::move(jobs)}});
    return kExitDone;
  }
  if (response->jobs_size() == 0) {
    std::puts("no jobs; `distctl submit job.yaml` makes one");
    return kExitDone;
  }
  const Terminal terminal = DescribeTerminal(1);
  Table table({"job", "state", "stage", ">submitted", "message"});
  for (const v1::Job& job : response->jobs()) {
    const v1::StageStatus* stage = CurrentStage(job);
    const double age = absl::ToDoubleSeconds(absl::Now() - absl::FromUnixSeconds(job.submitted_at().seconds()));
    table.AddRow({job.job_id(), JobStateName(job.state()), stage == nullptr ? "" : StageName(stage->stage()),
                  FormatSeconds(age) + " ago", Truncate(job.message(), 60, terminal.unicode)});
  }
  std::fputs(table.ToString(terminal.color).c_str(), stdout);
  return kExitDone;
}

}  // namespace

void AddList(CLI::App* app, Context* context) {
  CLI::App* verb = AddVerb(app, context, "list", "List jobs, newest first");
  auto limit = std::make_shared<int>(100);
  verb->add_option("--limit", *limit, "How many at most (default 100)")->check(CLI::Range(1, 10000));
  verb->callback([context, limit] { context->exit_code = List(context->globals, *limit); });
}

}  // namespace retort::cli
