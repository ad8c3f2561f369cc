#include "cli/spec/job_file.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "cli/spec/local_checks.h"
#include "cli/spec/override.h"
#include "cli/spec/semantics.h"
#include "common/file.h"

namespace retort::cli {
namespace {

std::string Absolute(const std::string& base, const std::string& path) {
  return (std::filesystem::path(base) / path).lexically_normal().string();
}

void MakeAbsolute(const std::string& base, std::string* path) {
  if (!path->empty()) *path = Absolute(base, *path);
}

void ResolvePaths(const std::string& base, const std::string& working_dir, v1::JobSpec* spec) {
  for (v1::PromptSource& source : *spec->mutable_prompts()) MakeAbsolute(base, source.mutable_path());
  for (v1::DatasetSource& source : *spec->mutable_dataset()) MakeAbsolute(base, source.mutable_path());
  for (v1::EvaluationSpec& evaluation : *spec->mutable_evaluate()) {
    MakeAbsolute(base, evaluation.mutable_prompts()->mutable_path());
  }
  if (spec->has_teacher() && spec->teacher().backend() != v1::TEACHER_BACKEND_OPENAI) {
    MakeAbsolute(base, spec->mutable_teacher()->mutable_model());
  }
  if (spec->has_student()) {
    MakeAbsolute(base, spec->mutable_student()->mutable_model_name_or_path());
    MakeAbsolute(base, spec->mutable_student()->mutable_adapter_name_or_path());
  }
  if (spec->output_dir().empty()) spec->set_output_dir(absl::StrCat("out/", spec->name()));
  MakeAbsolute(working_dir, spec->mutable_output_dir());
}

}  // namespace

BoundSpec ParseJobSpec(absl::string_view text, const std::string& source, const std::vector<std::string>& sets,
                       Diagnostics* diagnostics) {
  SpecValue root = ParseSpecYaml(text, source, /*line_positions=*/true, diagnostics);
  if (root.position.line == 0) root.position = Position{source, 1, 1};
  // Nothing could be read when the text is no YAML.
  if (root.kind != SpecValue::Kind::kNull || diagnostics->empty()) {
    for (const std::string& set : sets) ApplyOverride(set, &root, diagnostics);
  }
  BoundSpec bound = BindJobSpec(root, diagnostics);
  CompleteAndCheck(&bound, diagnostics);
  return bound;
}

JobFile LoadJobFile(const JobFileOptions& options, Diagnostics* diagnostics) {
  JobFile file;
  const auto text = ReadFile(options.path, kMaxSpecBytes);
  if (!text.ok()) {
    diagnostics->Add(Position{options.path}, "", absl::StrCat("cannot be read: ", text.status().message()));
    return file;
  }
  BoundSpec bound = ParseJobSpec(*text, options.path, options.sets, diagnostics);
  file.spec = std::move(bound.spec);
  file.origins = std::move(bound.origins);
  const std::string folder = std::filesystem::path(Absolute(options.working_dir, options.path)).parent_path().string();
  ResolvePaths(folder, options.working_dir, &file.spec);
  CheckDataFiles(file.origins, &file.spec, diagnostics);
  if (options.check_models) {
    CheckModelFolders(file.origins, file.spec, diagnostics);
    file.text = LookAtTrainingText(file.origins, file.spec, diagnostics);
  }
  return file;
}

}  // namespace retort::cli
