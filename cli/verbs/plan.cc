#include "cli/plan/plan.h"

#include <unistd.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/command.h"
#include "cli/job_file_arguments.h"
#include "cli/render/terminal.h"
#include "common/json.h"

namespace retort::cli {
namespace {

absl::StatusOr<int64_t> CountRows(const std::string& path) {
  int64_t rows = 0;
  const absl::Status status = ForEachJsonLine(path, [&](int64_t, absl::string_view, const nlohmann::json&) {
    ++rows;
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return rows;
}

// Nothing when the folder is not on this machine or its config says too little; the note says which.
std::optional<ModelFacts> FactsOf(const std::string& role, const std::string& folder, std::vector<std::string>* notes) {
  auto facts = ReadModelFacts(folder);
  if (facts.ok()) return *std::move(facts);
  notes->push_back("no memory estimate for the " + role + ": " + std::string(facts.status().message()));
  return std::nullopt;
}

int Plan(const JobFileArguments& arguments, const Globals& globals) {
  JobFile file;
  if (!LoadOrComplain(arguments, globals, &file)) return kExitUsage;
  const v1::JobSpec& spec = file.spec;
  RowCounts rows;
  for (const v1::PromptSource& source : spec.prompts()) {
    const auto count = CountRows(source.path());
    if (!count.ok()) return Fail(count.status());
    rows.prompts.push_back(*count);
  }
  for (const v1::EvaluationSpec& evaluation : spec.evaluate()) {
    const auto count = CountRows(evaluation.prompts().path());
    if (!count.ok()) return Fail(count.status());
    rows.evaluations.push_back(*count);
  }
  std::vector<std::string> notes;
  std::optional<ModelFacts> teacher;
  std::optional<ModelFacts> student;
  if (spec.has_teacher() && spec.teacher().backend() == v1::TEACHER_BACKEND_NATIVE) {
    teacher = FactsOf("teacher", spec.teacher().model(), &notes);
  }
  if (spec.has_student()) student = FactsOf("student", spec.student().model_name_or_path(), &notes);
  JobPlan plan = MakePlan(spec, StageNames(spec), rows, teacher.has_value() ? &*teacher : nullptr,
                          student.has_value() ? &*student : nullptr, file.text.additions);
  plan.notes.insert(plan.notes.end(), notes.begin(), notes.end());
  if (globals.json) {
    nlohmann::json document = PlanToJson(plan);
    document.update(TrainingTextToJson(file.text));
    PrintJson(document);
  } else {
    const Terminal terminal = DescribeTerminal(STDOUT_FILENO);
    std::string text = PlanToText(plan, terminal);
    if (file.text.sample.has_value()) text += "\n" + SampleText(file.text, terminal.color);
    std::fputs(text.c_str(), stdout);
  }
  return kExitDone;
}

}  // namespace

void AddPlan(CLI::App* app, Context* context) {
  CLI::App* verb = AddVerb(app, context, "plan", "Say what a job would run: samples, batches, steps, memory, disk");
  auto arguments = std::make_shared<JobFileArguments>();
  arguments->AddTo(verb);
  verb->callback([context, arguments] { context->exit_code = Plan(*arguments, context->globals); });
}

}  // namespace retort::cli
