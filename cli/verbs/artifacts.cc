#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/output_folder.h"
#include "cli/render/format.h"
#include "cli/render/job_json.h"
#include "cli/render/names.h"
#include "cli/render/terminal.h"

namespace retort::cli {
namespace {

struct Arguments {
  std::string job;
  std::string output;
  bool overwrite = false;
};

int ListArtifacts(const Globals& globals, const std::string& name) {
  const auto client = Connect(globals);
  if (!client.ok()) return Fail(client.status());
  const auto job = GetJob(*client, name);
  if (!job.ok()) return Fail(job.status());
  if (globals.json) {
    PrintJson({{"job", job->job_id()}, {"artifacts", JobToJson(*job)["artifacts"]}});
    return kExitDone;
  }
  if (job->result().artifacts_size() == 0) {
    std::printf("%s has made nothing yet\n", job->job_id().c_str());
    return kExitDone;
  }
  Table table({"name", "stage", ">size", "artifact"});
  for (const v1::JobArtifact& artifact : job->result().artifacts()) {
    table.AddRow({artifact.name(), StageName(artifact.stage()), FormatBytes(artifact.size_bytes()),
                  artifact.artifact_id().substr(0, 12)});
  }
  std::fputs(table.ToString(DescribeTerminal(STDOUT_FILENO).color).c_str(), stdout);
  return kExitDone;
}

int Pull(const Globals& globals, const Arguments& arguments) {
  const auto client = Connect(globals);
  if (!client.ok()) return Fail(client.status());
  const auto job = GetJob(*client, arguments.job);
  if (!job.ok()) return Fail(job.status());
  std::error_code error;
  const std::string folder =
      std::filesystem::absolute(arguments.output.empty() ? job->spec().output_dir() : arguments.output, error).string();
  // What the same job left there before may be replaced.
  const auto holder = JobOfOutputFolder(folder);
  if (!arguments.overwrite && (!holder.ok() || *holder != job->job_id())) {
    if (const absl::Status status = CheckOutputFolder(folder, false); !status.ok()) return Fail(status);
  }
  ArtifactClient artifacts(client->channel, ClientRetry());
  const auto names = FillOutputFolder(*job, folder, &artifacts);
  if (!names.ok()) return Fail(names.status());
  if (globals.json) {
    PrintJson({{"job", job->job_id()}, {"output_dir", folder}, {"files", *names}});
  } else {
    std::printf("%s: %s\n", folder.c_str(), absl::StrJoin(*names, "  ").c_str());
    if (!HasEnded(job->state())) {
      std::fprintf(stderr, "the job is still %s: result.json comes when it has ended\n",
                   JobStateName(job->state()).c_str());
    }
  }
  return kExitDone;
}

}  // namespace

void AddArtifacts(CLI::App* app, Context* context) {
  CLI::App* verb = AddVerb(app, context, "artifacts", "What a job has made");
  verb->require_subcommand(1);
  const std::string job_help = "Job id, the beginning of one, or a job's name (its newest)";
  auto arguments = std::make_shared<Arguments>();

  CLI::App* list = AddVerb(verb, context, "ls", "List it");
  list->add_option("JOB", arguments->job, job_help)->required();
  list->callback([context, arguments] { context->exit_code = ListArtifacts(context->globals, arguments->job); });

  CLI::App* pull = AddVerb(verb, context, "pull", "Fetch it: result.json, dataset/, adapter/, merged/, checkpoints/");
  pull->add_option("JOB", arguments->job, job_help)->required();
  pull->add_option("--output", arguments->output, "Folder (default: the job's output_dir)");
  pull->add_flag("--overwrite", arguments->overwrite, "Replace the result of another job");
  pull->callback([context, arguments] { context->exit_code = Pull(context->globals, *arguments); });
}

}  // namespace retort::cli
