#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/output_folder.h"

namespace retort::cli {
namespace {

struct Arguments {
  std::string job;
  std::string output;
  std::string what = "all";
  bool overwrite = false;
};

int Export(const Globals& globals, const Arguments& arguments) {
  const auto client = Connect(globals);
  if (!client.ok()) return Fail(client.status());
  const auto job = GetJob(*client, arguments.job);
  if (!job.ok()) return Fail(job.status());
  ArtifactClient artifacts(client->channel, ClientRetry());
  std::error_code error;
  const std::string folder = std::filesystem::absolute(arguments.output, error).string();
  std::vector<const v1::JobArtifact*> wanted;
  for (const v1::JobArtifact& artifact : job->result().artifacts()) {
    const bool fits = arguments.what == "all" ? artifact.name() == "adapter" || artifact.name() == "merged"
                                              : artifact.name() == arguments.what;
    if (fits) wanted.push_back(&artifact);
  }
  if (wanted.empty()) {
    const std::string what = arguments.what == "all" ? "adapter or merged model" : arguments.what;
    return Fail(absl::NotFoundError(absl::StrCat(job->job_id(), " has no ", what, "; `distctl artifacts ls ",
                                                 job->job_id(), "` shows what it has")));
  }
  for (const v1::JobArtifact* artifact : wanted) {
    const std::string target = folder + "/" + artifact->name();
    if (!arguments.overwrite && std::filesystem::exists(target, error)) {
      return FailUsage(absl::StrCat(target, " is there already; give --overwrite to replace it"));
    }
  }
  std::vector<std::string> made;
  for (const v1::JobArtifact* artifact : wanted) {
    const std::string target = folder + "/" + artifact->name();
    const absl::Status status = FetchFolder(artifact->artifact_id(), target, &artifacts);
    if (!status.ok()) return Fail(status);
    made.push_back(target);
  }
  if (globals.json) {
    PrintJson({{"job", job->job_id()}, {"folders", made}});
  } else {
    std::printf("%s\n", absl::StrJoin(made, "\n").c_str());
  }
  return kExitDone;
}

}  // namespace

void AddExport(CLI::App* app, Context* context) {
  CLI::App* verb = AddVerb(app, context, "export", "Fetch a job's adapter and merged model into a folder");
  auto arguments = std::make_shared<Arguments>();
  verb->add_option("JOB", arguments->job, "Job id, the beginning of one, or a job's name (its newest)")->required();
  verb->add_option("--output", arguments->output, "Folder; adapter/ and merged/ are made in it")->required();
  verb->add_option("--what", arguments->what, "adapter, merged or all (default all)")
      ->check(CLI::IsMember({"adapter", "merged", "all"}));
  verb->add_flag("--overwrite", arguments->overwrite, "Replace what is there");
  verb->callback([context, arguments] { context->exit_code = Export(context->globals, *arguments); });
}

}  // namespace retort::cli
