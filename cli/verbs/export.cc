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
  std::string model;
  std::string adapter;
  std::string dtype;
  bool merged = false;
  std::string what = "all";
  bool overwrite = false;
};

// retort-student has the torch that distctl does not.
int Merge(const Arguments& arguments) {
  if (arguments.model.empty() || arguments.adapter.empty() || !arguments.job.empty()) {
    return FailUsage("--merged wants --model DIR and --adapter DIR, and no job: it merges folders");
  }
  std::vector<std::string> flags = {"--model",         arguments.model, "--adapter",
                                    arguments.adapter, "--output",      arguments.output};
  if (!arguments.dtype.empty()) flags.insert(flags.end(), {"--dtype", arguments.dtype});
  return BecomeProgram("retort-student", "merge", std::move(flags));
}

int Export(const Globals& globals, const Arguments& arguments) {
  if (arguments.merged) return Merge(arguments);
  if (arguments.job.empty()) return FailUsage("which job? Or, to merge folders: --merged --model DIR --adapter DIR");
  if (!arguments.model.empty() || !arguments.adapter.empty() || !arguments.dtype.empty()) {
    return FailUsage("--model, --adapter and --dtype go with --merged, which takes no job");
  }
  const auto client = Connect(globals);
  if (!client.ok()) return Fail(client.status());
  const auto job = GetJob(*client, arguments.job);
  if (!job.ok()) return Fail(job.status());
  ArtifactClient artifacts(client->channel, ClientRetry());
  std::error_code error;
  const std::string folder = std::filesystem::absolute(arguments.output, error).string();
  std::vector<const v1::JobArtifact*> wanted;
  for (const v1::JobArtifact& artifact : job->result().artifacts()) {
    const bool model = artifact.name() == "adapter" || artifact.name() == "merged" || artifact.name() == "gguf";
    const bool fits = arguments.what == "all" ? model : artifact.name() == arguments.what;
    if (fits) wanted.push_back(&artifact);
  }
  if (wanted.empty()) {
    const std::string what = arguments.what == "all" ? "adapter, merged model or GGUF file" : arguments.what;
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
  CLI::App* verb =
      AddVerb(app, context, "export",
              "Fetch a job's adapter, merged model and GGUF file into a folder, or merge an adapter into its base");
  auto arguments = std::make_shared<Arguments>();
  verb->add_option("JOB", arguments->job, "Job id, the beginning of one, or a job's name (its newest)");
  verb->add_option("--output", arguments->output,
                   "Folder; adapter/, merged/ and gguf/ are made in it. With --merged: the folder to make")
      ->required();
  verb->add_flag("--merged", arguments->merged, "Not of a job: merge --adapter into --model");
  verb->add_option("--model", arguments->model, "With --merged: Hugging Face folder of the base");
  verb->add_option("--adapter", arguments->adapter, "With --merged: PEFT folder");
  verb->add_option("--dtype", arguments->dtype, "With --merged: float32, bfloat16 or float16 (default: the base's)")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
  verb->add_option("--what", arguments->what, "adapter, merged, gguf or all (default all)")
      ->check(CLI::IsMember({"adapter", "merged", "gguf", "all"}));
  verb->add_flag("--overwrite", arguments->overwrite, "Replace what is there");
  verb->callback([context, arguments] { context->exit_code = Export(context->globals, *arguments); });
}

}  // namespace retort::cli
