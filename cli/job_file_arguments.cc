#include "cli/job_file_arguments.h"

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "common/rpc/channel.h"

namespace retort::cli {

void JobFileArguments::AddTo(CLI::App* verb) {
  verb->add_option("JOB_FILE", path, "The job, e.g. job.yaml; docs/job-spec.md lists its keys")->required();
  verb->add_option("--set", sets, "Override a key: path.to.key=value, the value as YAML; may be repeated")
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

bool LoadOrComplain(const JobFileArguments& arguments, const Globals& globals, JobFile* file) {
  JobFileOptions options{.path = arguments.path, .sets = arguments.sets};
  std::error_code error;
  options.working_dir = std::filesystem::current_path(error).string();
  options.check_models = globals.coordinator.empty() || IsLoopbackAddress(globals.coordinator);
  Diagnostics diagnostics;
  *file = LoadJobFile(options, &diagnostics);
  if (diagnostics.empty()) return true;
  if (!globals.json) {
    std::fputs(diagnostics.ToString().c_str(), stderr);
    return false;
  }
  nlohmann::json errors = nlohmann::json::array();
  for (const Diagnostic& diagnostic : diagnostics.Sorted()) {
    nlohmann::json one = {
        {"source", diagnostic.position.source}, {"path", diagnostic.path}, {"message", diagnostic.message}};
    if (diagnostic.position.line > 0) {
      one["line"] = diagnostic.position.line;
      one["column"] = diagnostic.position.column;
    }
    errors.push_back(std::move(one));
  }
  PrintJson({{"valid", false}, {"errors", std::move(errors)}});
  return false;
}

std::vector<std::string> StageNames(const v1::JobSpec& spec) {
  std::vector<std::string> stages;
  if (spec.has_teacher() && spec.prompts_size() > 0) stages = {"generate", "curate"};
  if (spec.has_student()) stages.push_back("train");
  if (spec.evaluate_size() > 0) stages.push_back("evaluate");
  const bool exports = !spec.export_().merged().empty() || !spec.export_().gguf().empty();
  if (spec.has_student() && exports) stages.push_back("export");
  return stages;
}

}  // namespace retort::cli
