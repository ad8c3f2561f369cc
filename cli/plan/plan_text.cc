#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "cli/plan/plan.h"
#include "cli/render/format.h"

namespace retort::cli {
namespace {

std::string CountRange(int min, int max, absl::string_view one, absl::string_view many) {
  if (min == max) return absl::StrCat(min, " ", min == 1 ? one : many);
  return absl::StrCat(min, " to ", max, " ", many);
}

std::string TrainText(const TrainPlan& train) {
  const char* at_most = train.rows_exact ? "" : "at most ";
  std::string text = absl::StrCat(at_most, FormatCount(train.rows), " rows");
  if (train.validation_rows > 0)
    absl::StrAppend(&text, " (and ", FormatCount(train.validation_rows), " for validation)");
  absl::StrAppendFormat(&text, ", %s%s steps of %d sequences, %.4g epochs", at_most, FormatCount(train.steps),
                        train.batch, train.epochs);
  return text;
}

}  // namespace

std::string PlanToText(const JobPlan& plan, const Terminal& terminal) {
  const bool color = terminal.color;
  std::string text =
      absl::StrCat(Styled(plan.name, Style::kBold, color), "  ", absl::StrJoin(plan.stages, " > "), "\n\n");
  const auto line = [&](absl::string_view name, absl::string_view detail) {
    absl::StrAppend(&text, "  ", Pad(name, 9), "  ", detail, "\n");
  };
  if (plan.generate.has_value()) {
    line("generate",
         absl::StrCat(FormatCount(plan.generate->samples), " samples: ", FormatCount(plan.generate->prompts),
                      " prompts x ", plan.generate->n, " by ",
                      CountRange(plan.generate->min_replicas, plan.generate->max_replicas, "replica", "replicas")));
  }
  if (plan.train.has_value()) {
    line("train", TrainText(*plan.train));
    line("", absl::StrCat(CountRange(plan.train->min_workers, plan.train->max_workers, "worker", "workers"), "; the ",
                          plan.train->micro_batches, " micro-batches of a step fall on ", plan.train->max_workers,
                          " as ", absl::StrJoin(plan.train->shares, " + ")));
  }
  for (const JobPlan::Evaluation& one : plan.evaluations) {
    line("evaluate", absl::StrCat(FormatCount(one.samples), " samples: ", FormatCount(one.rows), " prompts x ", one.n,
                                  " by ", one.models, one.models == 1 ? " model" : " models"));
  }
  if (!plan.memory.empty()) {
    Table table({"memory of one", "on", ">weights", ">KV cache", ">adapter", ">gradients", ">optimizer", ">activations",
                 ">about"});
    for (const MemoryPlan& memory : plan.memory) {
      const auto bytes = [](int64_t value) { return value == 0 ? std::string("-") : FormatBytes(value); };
      table.AddRow({memory.role, memory.gpu ? "GPU" : "CPU", bytes(memory.weights), bytes(memory.kv_cache),
                    bytes(memory.adapter), bytes(memory.gradients), bytes(memory.optimizer), bytes(memory.activations),
                    Styled(bytes(memory.total), Style::kBold, color)});
    }
    text += "\n";
    for (absl::string_view row : absl::StrSplit(table.ToString(color), '\n', absl::SkipEmpty()))
      absl::StrAppend(&text, "  ", row, "\n");
  }
  std::vector<std::string> disk;
  if (plan.disk.traces_at_most > 0)
    disk.push_back(absl::StrCat("traces at most ", FormatBytes(plan.disk.traces_at_most)));
  if (plan.disk.checkpoint > 0) disk.push_back(absl::StrCat("each checkpoint ", FormatBytes(plan.disk.checkpoint)));
  if (plan.disk.merged > 0) disk.push_back(absl::StrCat("merged model ", FormatBytes(plan.disk.merged)));
  if (!disk.empty()) {
    text += "\n";
    line("disk", absl::StrJoin(disk, ", "));
  }
  if (!plan.notes.empty()) text += "\n";
  for (const std::string& note : plan.notes)
    absl::StrAppend(&text, "  ", Styled("note", Style::kYellow, color), "  ", note, "\n");
  return text;
}

}  // namespace retort::cli
