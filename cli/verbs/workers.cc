#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/render/job_json.h"
#include "cli/render/job_text.h"
#include "cli/render/terminal.h"

namespace retort::cli {
namespace {

int Workers(const Globals& globals) {
  const auto client = Connect(globals);
  if (!client.ok()) return Fail(client.status());
  const auto response = UnaryWithRetry<v1::ListWorkersResponse>(
      "ListWorkers", ClientRetry(), [&](grpc::ClientContext* context, v1::ListWorkersResponse* response) {
        return client->jobs->ListWorkers(context, v1::ListWorkersRequest(), response);
      });
  if (!response.ok()) return Fail(response.status());
  if (globals.json) {
    nlohmann::json workers = nlohmann::json::array();
    for (const v1::WorkerStatus& worker : response->workers()) workers.push_back(WorkerToJson(worker));
    PrintJson({{"workers", std::move(workers)}});
  } else if (response->workers_size() == 0) {
    std::puts("no workers; `distctl local up` starts one on this machine");
  } else {
    const std::vector<v1::WorkerStatus> workers(response->workers().begin(), response->workers().end());
    std::fputs(WorkersText(workers, absl::Now(), {.terminal = DescribeTerminal(STDOUT_FILENO)}).c_str(), stdout);
  }
  return kExitDone;
}

}  // namespace

void AddWorkers(CLI::App* app, Context* context) {
  CLI::App* verb = AddVerb(app, context, "workers", "List the workers, what they offer and what they run");
  verb->callback([context] { context->exit_code = Workers(context->globals); });
}

}  // namespace retort::cli
