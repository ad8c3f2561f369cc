#include <unistd.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/job_file_arguments.h"
#include "cli/local/local_cluster.h"
#include "cli/output_folder.h"
#include "cli/render/job_json.h"
#include "cli/render/job_text.h"
#include "cli/render/terminal.h"
#include "cli/watch.h"
#include "common/id.h"

namespace retort::cli {
namespace {

struct Arguments {
  JobFileArguments job_file;
  std::string request_id;
  bool local = false;
  bool watch = false;
  bool overwrite = false;
};

absl::Status BringUp(const Globals& globals) {
  if (!globals.coordinator.empty()) {
    return absl::InvalidArgumentError(
        "--local starts a coordinator of its own; leave out --coordinator (and RETORT_COORDINATOR)");
  }
  const auto cluster = LocalUp({.state_dir = StateDir(globals)});
  if (!cluster.ok()) return cluster.status();
  if (cluster->started) {
    std::fprintf(stderr, "local cluster started: %d CPU slots, %d GPUs; `distctl local down` stops it\n",
                 cluster->cpu_slots, cluster->gpus);
  }
  return absl::OkStatus();
}

// Puts every input file into the artifact store; the spec then names contents, not places.
absl::Status UploadInputs(ArtifactClient* artifacts, v1::JobSpec* spec) {
  const auto upload = [&](const std::string& path, v1::BlobRef* blob) -> absl::Status {
    auto stored = artifacts->PutFile(path);
    if (!stored.ok()) return WithContext(stored.status(), absl::StrCat("upload ", path));
    *blob = *std::move(stored);
    return absl::OkStatus();
  };
  for (v1::PromptSource& source : *spec->mutable_prompts())
    RETURN_IF_ERROR(upload(source.path(), source.mutable_file()));
  for (v1::DatasetSource& source : *spec->mutable_dataset())
    RETURN_IF_ERROR(upload(source.path(), source.mutable_file()));
  for (v1::EvaluationSpec& evaluation : *spec->mutable_evaluate()) {
    v1::PromptSource* source = evaluation.mutable_prompts();
    RETURN_IF_ERROR(upload(source->path(), source->mutable_file()));
  }
  return absl::OkStatus();
}

int Watch(const Globals& globals, const Client& client, const std::string& job_id) {
  absl::StatusOr<v1::Job> job = WatchUntilEnd(client, job_id);
  if (absl::IsCancelled(job.status())) {
    std::fprintf(stderr, "%s\n", std::string(job.status().message()).c_str());
    return kExitInterrupted;
  }
  if (job.ok()) job = GetJob(client, job_id);
  if (!job.ok()) return Fail(job.status());

  RetryOptions retry = ClientRetry();
  retry.cancelled = Interrupted;
  ArtifactClient artifacts(client.channel, retry);
  const std::string& folder = job->spec().output_dir();
  const auto names = FillOutputFolder(*job, folder, &artifacts);
  const bool succeeded = job->state() == v1::JOB_STATE_SUCCEEDED;
  if (globals.json) {
    nlohmann::json document = JobToJson(*job);
    document["files"] = names.ok() ? nlohmann::json(*names) : nlohmann::json(nullptr);
    PrintJson(document);
  } else {
    const TextOptions options{.terminal = DescribeTerminal(STDOUT_FILENO)};
    std::fputs(("\n" + ReportText(*job, options)).c_str(), stdout);
    if (names.ok()) std::printf("\n  %s: %s\n", folder.c_str(), absl::StrJoin(*names, "  ").c_str());
    if (!succeeded) {
      std::printf("\n  `distctl logs %s` shows what its tasks wrote, `distctl resume %s` takes it up again\n",
                  job_id.c_str(), job_id.c_str());
    }
  }
  if (!names.ok()) {
    if (Interrupted()) return kExitInterrupted;
    return Fail(WithContext(names.status(),
                            absl::StrCat("the job has ended, but ", folder,
                                         " could not be filled (`distctl artifacts pull ", job_id, "` tries again)")));
  }
  return succeeded ? kExitDone : kExitFailed;
}

int Submit(const Globals& globals, const Arguments& arguments) {
  JobFile file;
  if (!LoadOrComplain(arguments.job_file, globals, &file)) return kExitUsage;
  if (const absl::Status status = CheckOutputFolder(file.spec.output_dir(), arguments.overwrite); !status.ok())
    return Fail(status);
  if (arguments.local) {
    if (const absl::Status status = BringUp(globals); !status.ok()) return Fail(status);
  }
  const auto client = Connect(globals);
  if (!client.ok()) return Fail(client.status());
  ArtifactClient artifacts(client->channel, ClientRetry());
  if (const absl::Status status = UploadInputs(&artifacts, &file.spec); !status.ok()) return Fail(status);

  v1::SubmitJobRequest request;
  request.set_request_id(arguments.request_id.empty() ? NewRequestId() : arguments.request_id);
  *request.mutable_spec() = file.spec;
  const auto response = UnaryWithRetry<v1::SubmitJobResponse>(
      "SubmitJob", ClientRetry(), [&](grpc::ClientContext* context, v1::SubmitJobResponse* response) {
        return client->jobs->SubmitJob(context, request, response);
      });
  if (!response.ok()) return Fail(response.status());
  const std::string& job_id = response->job_id();
  if (arguments.watch) return Watch(globals, *client, job_id);
  if (globals.json) {
    PrintJson({{"job", job_id}});
  } else {
    std::printf("%s\n", job_id.c_str());
    if (DescribeTerminal(STDERR_FILENO).tty) {
      std::fprintf(stderr, "`distctl status -w %s` watches it, `distctl artifacts pull %s` fetches the result\n",
                   job_id.c_str(), job_id.c_str());
    }
  }
  return kExitDone;
}

}  // namespace

void AddSubmit(CLI::App* app, Context* context) {
  CLI::App* verb = AddVerb(app, context, "submit", "Run a job; prints its id");
  auto arguments = std::make_shared<Arguments>();
  arguments->job_file.AddTo(verb);
  verb->add_flag("--local", arguments->local, "Start the local cluster first, where it is not up");
  verb->add_flag("--watch", arguments->watch, "Follow the job, then fetch its result into output_dir");
  verb->add_flag("--overwrite", arguments->overwrite, "Replace a result that output_dir holds");
  verb->add_option("--request-id", arguments->request_id, "Sent twice, one job")->check([](const std::string& id) {
    return id.empty() || id.size() > 128 ? "wants 1 to 128 characters" : "";
  });
  verb->callback([context, arguments] { context->exit_code = Submit(context->globals, *arguments); });
}

}  // namespace retort::cli
