#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/render/names.h"

namespace retort::cli {
namespace {

struct Arguments {
  std::string job;
  std::string task;
  bool follow = false;
};

// Prints what comes, once: a stream that breaks is asked for again from the start, and what was printed is skipped.
class LogPrinter {
 public:
  LogPrinter(bool json, bool name_tasks) : json_(json), name_tasks_(name_tasks) {}

  void Restart() {
    for (auto& [placement, counts] : counts_) counts.received = 0;
  }

  void Print(const v1::GetLogsResponse& part) {
    Counts& counts = counts_[{part.task_id(), part.epoch()}];
    absl::string_view data = part.data();
    const size_t known = counts.printed > counts.received ? counts.printed - counts.received : 0;
    counts.received += data.size();
    if (known >= data.size()) return;
    data.remove_prefix(known);
    counts.printed += data.size();
    if (!data.empty() && data.back() == '\n') data.remove_suffix(1);
    for (absl::string_view line : absl::StrSplit(data, '\n')) PrintLine(part, std::string(line));
    std::fflush(stdout);
  }

 private:
  struct Counts {
    size_t received = 0;  // in this stream
    size_t printed = 0;
  };

  void PrintLine(const v1::GetLogsResponse& part, const std::string& line) {
    if (json_) {
      const nlohmann::json document = {{"task", part.task_id()}, {"epoch", part.epoch()}, {"line", line}};
      std::printf("%s\n", document.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    } else if (name_tasks_) {
      std::printf("%s | %s\n", ShortTaskId(part.task_id()).c_str(), line.c_str());
    } else {
      std::printf("%s\n", line.c_str());
    }
  }

  const bool json_;
  const bool name_tasks_;
  std::map<std::pair<std::string, uint64_t>, Counts> counts_;
};

int Logs(const Globals& globals, const Arguments& arguments) {
  const auto client = Connect(globals);
  if (!client.ok()) return Fail(client.status());
  const auto job = GetJob(*client, arguments.job);
  if (!job.ok()) return Fail(job.status());
  v1::GetLogsRequest request;
  request.set_job_id(job->job_id());
  request.set_follow(arguments.follow);
  request.set_task_id(arguments.task);
  // "train.0.1" is enough.
  if (!arguments.task.empty() && arguments.task.rfind(job->job_id(), 0) != 0) {
    request.set_task_id(job->job_id() + "." + arguments.task);
  }
  LogPrinter printer(globals.json, arguments.task.empty());
  const absl::Status status = CallWithRetry("GetLogs", ClientRetry(), [&](absl::Time deadline) {
    grpc::ClientContext context;
    if (!arguments.follow) context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Minutes(10)));
    printer.Restart();
    auto stream = client->jobs->GetLogs(&context, request);
    v1::GetLogsResponse part;
    while (stream->Read(&part)) printer.Print(part);
    return FromGrpc(stream->Finish());
  });
  return status.ok() ? kExitDone : Fail(status);
}

}  // namespace

void AddLogs(CLI::App* app, Context* context) {
  CLI::App* verb = AddVerb(app, context, "logs", "Print what a job's tasks wrote; with --json one object a line");
  auto arguments = std::make_shared<Arguments>();
  verb->add_option("JOB", arguments->job, "Job id, the beginning of one, or a job's name (its newest)")->required();
  verb->add_flag("-f,--follow", arguments->follow, "Go on until the job has ended");
  verb->add_option("--task", arguments->task, "Only this task, e.g. train.0.1");
  verb->callback([context, arguments] { context->exit_code = Logs(context->globals, *arguments); });
}

}  // namespace retort::cli
