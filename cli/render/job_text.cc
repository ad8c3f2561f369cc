#include "cli/render/job_text.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/render/format.h"
#include "cli/render/job_json.h"
#include "cli/render/names.h"

namespace retort::cli {
namespace {

constexpr int kNameColumns = 8;
constexpr int kDetailColumn = 2 + 1 + 1 + kNameColumns + 2;  // where a stage's detail begins
// A narrow terminal shows numbers rather than a long bar.
int BarColumns(const TextOptions& options) { return options.terminal.width < 104 ? 12 : 24; }

absl::Time ToTime(const google::protobuf::Timestamp& time) {
  return absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
}

std::string Icon(v1::StageState state, const TextOptions& options) {
  static constexpr const char* kSpinner[] = {"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"};
  static constexpr const char* kAsciiSpinner[] = {"|", "/", "-", "\\"};
  const bool unicode = options.terminal.unicode;
  const bool color = options.terminal.color;
  switch (state) {
    case v1::STAGE_STATE_SUCCEEDED:
      return Styled(unicode ? "✓" : "+", Style::kGreen, color);
    case v1::STAGE_STATE_FAILED:
      return Styled(unicode ? "✗" : "x", Style::kRed, color);
    case v1::STAGE_STATE_CANCELLED:
      return Styled(unicode ? "⊘" : "x", Style::kYellow, color);
    case v1::STAGE_STATE_RUNNING:
      return Styled(unicode ? kSpinner[options.frame % 10] : kAsciiSpinner[options.frame % 4], Style::kCyan, color);
    default:
      return Styled(unicode ? "·" : ".", Style::kDim, color);
  }
}

std::string Bar(double share, const TextOptions& options) {
  share = std::clamp(std::isfinite(share) ? share : 0.0, 0.0, 1.0);
  const int columns = BarColumns(options);
  const int full = static_cast<int>(share * columns);
  std::string filled;
  std::string rest;
  for (int i = 0; i < columns; ++i) {
    (i < full ? filled : rest) += options.terminal.unicode ? "━" : i < full ? "#" : "-";
  }
  return absl::StrCat(Styled(filled, Style::kCyan, options.terminal.color),
                      Styled(rest, Style::kDim, options.terminal.color));
}

// Largest count first, e.g. "900 kept, 80 wrong_answer".
std::string OutcomesText(const v1::Outcomes& outcomes) {
  std::vector<std::pair<int64_t, std::string>> sorted;
  for (const auto& [cause, count] : outcomes.counts()) {
    if (count != 0) sorted.emplace_back(-count, cause);
  }
  std::sort(sorted.begin(), sorted.end());
  std::vector<std::string> parts;
  for (const auto& [count, cause] : sorted) parts.push_back(absl::StrCat(FormatCount(-count), " ", cause));
  return absl::StrJoin(parts, ", ");
}

bool AllWait(const v1::StageStatus& stage) {
  return stage.tasks_size() > 0 && std::all_of(stage.tasks().begin(), stage.tasks().end(), [](const v1::Task& task) {
           return task.state() == v1::TASK_STATE_WAITING || task.state() == v1::TASK_STATE_SUCCEEDED;
         });
}

// Why nothing of a running stage runs; empty when something does.
std::string WaitReason(const v1::StageStatus& stage) {
  if (!AllWait(stage)) return "";
  for (const v1::Task& task : stage.tasks()) {
    if (task.state() == v1::TASK_STATE_WAITING && !task.wait_reason().empty()) return task.wait_reason();
  }
  return "";
}

// "3.2/s, 1m 20s left, loss 0.412" as parts.
std::vector<std::string> ProgressParts(const v1::Progress& progress, bool training) {
  std::vector<std::string> parts;
  if (progress.rate_per_second() > 0) {
    parts.push_back(absl::StrCat(FormatRate(progress.rate_per_second()), "/s"));
    if (progress.total() > progress.done()) {
      const double left = static_cast<double>(progress.total() - progress.done()) / progress.rate_per_second();
      parts.push_back(absl::StrCat(FormatSeconds(left), " left"));
    }
  }
  if (training && progress.loss() > 0) parts.push_back(absl::StrFormat("loss %.4g", progress.loss()));
  if (progress.tokens_per_second() > 0) {
    parts.push_back(absl::StrCat(FormatCount(std::llround(progress.tokens_per_second())), " tokens/s"));
  }
  return parts;
}

std::string DoneOfTotal(const v1::Progress& progress) {
  return absl::StrCat(FormatCount(progress.done()), "/", FormatCount(progress.total()),
                      progress.unit().empty() ? "" : " ", progress.unit());
}

// What a stage has come to: outcomes, for training the way of the loss.
std::string YieldText(const v1::Job& job, const v1::StageStatus& stage) {
  std::vector<std::string> parts;
  if (stage.stage() == v1::STAGE_TRAIN && job.result().losses_size() > 0) {
    const auto& losses = job.result().losses();
    parts.push_back(absl::StrCat(FormatCount(losses.rbegin()->step()), " steps"));
    parts.push_back(absl::StrFormat("loss %.4g to %.4g", losses.begin()->loss(), losses.rbegin()->loss()));
  }
  if (const std::string outcomes = OutcomesText(stage.outcomes()); !outcomes.empty()) parts.push_back(outcomes);
  if (stage.stage() == v1::STAGE_EVALUATE && parts.empty()) {
    for (const v1::EvaluationResult& evaluation : job.result().evaluations()) {
      if (evaluation.has_student()) parts.push_back(absl::StrCat("student ", FormatPercent(evaluation.student())));
    }
  }
  return absl::StrJoin(parts, ", ");
}

std::string StageDetail(const v1::Job& job, const v1::StageStatus& stage, const TextOptions& options) {
  const bool color = options.terminal.color;
  const std::string yield = YieldText(job, stage);
  const std::string seconds = stage.seconds() > 0 ? FormatSeconds(stage.seconds()) : "";
  switch (stage.state()) {
    case v1::STAGE_STATE_RUNNING: {
      const v1::Progress& progress = stage.progress();
      if (const std::string reason = WaitReason(stage); !reason.empty()) {
        return Styled(absl::StrCat("waits: ", reason), Style::kYellow, color);
      }
      if (progress.total() <= 0) {
        return Styled(progress.message().empty() ? "starting" : progress.message(), Style::kDim, color);
      }
      std::vector<std::string> parts = ProgressParts(progress, stage.stage() == v1::STAGE_TRAIN);
      if (parts.empty() && !progress.message().empty()) parts.push_back(progress.message());
      const std::string head =
          absl::StrCat(Bar(static_cast<double>(progress.done()) / static_cast<double>(progress.total()), options), "  ",
                       DoneOfTotal(progress));
      // What does not fit is left out whole: half a number is a wrong one.
      const int room = options.terminal.width - 1 - kDetailColumn - VisibleWidth(head);
      std::string tail;
      for (const std::string& part : parts) {
        const std::string longer = absl::StrCat(tail, "  ", part);
        if (VisibleWidth(longer) > room) break;
        tail = longer;
      }
      return absl::StrCat(head, Styled(tail, Style::kDim, color));
    }
    case v1::STAGE_STATE_SUCCEEDED:
      return absl::StrCat(yield, yield.empty() || seconds.empty() ? "" : "  ", Styled(seconds, Style::kDim, color));
    case v1::STAGE_STATE_FAILED:
    case v1::STAGE_STATE_CANCELLED:
      return absl::StrCat(StageStateName(stage.state()), yield.empty() ? "" : "  ", yield, seconds.empty() ? "" : "  ",
                          Styled(seconds, Style::kDim, color));
    default:
      return "";
  }
}

// Tasks that failed and are tried again, newest error only.
std::vector<std::string> FailureLines(const v1::StageStatus& stage, const TextOptions& options) {
  std::vector<std::string> lines;
  for (const v1::Task& task : stage.tasks()) {
    if (task.failures() == 0 && task.state() != v1::TASK_STATE_FAILED) continue;
    const std::string times = task.failures() == 1 ? "failed once" : absl::StrCat("failed ", task.failures(), " times");
    const std::string error = task.last_error().empty() ? "" : absl::StrCat(": ", task.last_error());
    lines.push_back(
        absl::StrCat("    ", ShortTaskId(task.ref().task_id()), " ", task.failures() == 0 ? "failed" : times, error));
  }
  for (std::string& line : lines) {
    line = Styled(line, stage.state() == v1::STAGE_STATE_FAILED ? Style::kRed : Style::kYellow, options.terminal.color);
  }
  return lines;
}

Style StyleOf(v1::JobState state) {
  switch (state) {
    case v1::JOB_STATE_SUCCEEDED:
      return Style::kGreen;
    case v1::JOB_STATE_FAILED:
      return Style::kRed;
    case v1::JOB_STATE_CANCELLED:
      return Style::kYellow;
    default:
      return Style::kCyan;
  }
}

std::string TotalTime(const v1::Job& job) {
  if (!job.has_submitted_at() || !job.has_finished_at()) return "";
  return absl::StrCat(" in ",
                      FormatSeconds(absl::ToDoubleSeconds(ToTime(job.finished_at()) - ToTime(job.submitted_at()))));
}

std::string Heading(const v1::Job& job, const TextOptions& options) {
  const bool color = options.terminal.color;
  return absl::StrCat(Styled(job.job_id(), Style::kBold, color), "  ",
                      Styled(JobStateName(job.state()), StyleOf(job.state()), color),
                      Styled(TotalTime(job), Style::kDim, color));
}

// A message may hold several lines; each is indented and fits.
void AppendMessage(const v1::Job& job, const TextOptions& options, std::vector<std::string>* lines) {
  if (job.message().empty()) return;
  lines->push_back(Styled(absl::StrCat("  ", job.message()), StyleOf(job.state()), options.terminal.color));
}

double OrNan(bool there, double value) { return there ? value : std::numeric_limits<double>::quiet_NaN(); }

std::string AccuracyTable(const v1::JobResult& result, const TextOptions& options) {
  if (result.evaluations_size() == 0) return "";
  Table table({"accuracy on", ">prompts", ">n", ">base", ">teacher", ">student", ">gain"});
  for (const v1::EvaluationResult& evaluation : result.evaluations()) {
    const size_t slash = evaluation.prompts().rfind('/');
    std::string gain = "-";
    if (evaluation.has_base() && evaluation.has_student()) {
      gain = absl::StrFormat("%+.1f", 100 * (evaluation.student() - evaluation.base()));
    }
    table.AddRow({slash == std::string::npos ? evaluation.prompts() : evaluation.prompts().substr(slash + 1),
                  FormatCount(evaluation.prompt_count()), absl::StrCat(evaluation.n()),
                  FormatPercent(OrNan(evaluation.has_base(), evaluation.base())),
                  FormatPercent(OrNan(evaluation.has_teacher(), evaluation.teacher())),
                  Styled(FormatPercent(OrNan(evaluation.has_student(), evaluation.student())), Style::kBold,
                         options.terminal.color),
                  gain});
  }
  return table.ToString(options.terminal.color);
}

std::string Indent(absl::string_view text) {
  std::string indented;
  bool at_start = true;
  for (const char c : text) {
    if (at_start && c != '\n') indented += "  ";
    indented += c;
    at_start = c == '\n';
  }
  return indented;
}

std::string LossCurve(const v1::JobResult& result, const TextOptions& options) {
  if (result.losses_size() == 0) return "";
  std::vector<double> values;
  const v1::LossPoint* evaluated = nullptr;
  for (const v1::LossPoint& point : result.losses()) {
    values.push_back(point.loss());
    if (point.has_eval_loss()) evaluated = &point;
  }
  const v1::LossPoint& last = *result.losses().rbegin();
  const std::string curve = Sparkline(values, 40, options.terminal.unicode);
  std::string text = absl::StrCat("loss  ", curve, curve.empty() ? "" : "  ");
  absl::StrAppendFormat(&text, "%.4g at step %d, gradient norm %.3g, learning rate %.3g", last.loss(), last.step(),
                        last.grad_norm(), last.learning_rate());
  if (evaluated != nullptr)
    absl::StrAppendFormat(&text, "; validation %.4g at step %d", evaluated->eval_loss(), evaluated->step());
  return text + "\n";
}

}  // namespace

std::vector<std::string> ProgressLines(const v1::Job& job, const TextOptions& options) {
  std::vector<std::string> lines = {Heading(job, options)};
  AppendMessage(job, options, &lines);
  for (const v1::StageStatus& stage : job.stages()) {
    const bool pending = stage.state() == v1::STAGE_STATE_PENDING;
    const std::string name = Pad(StageName(stage.stage()), kNameColumns);
    lines.push_back(absl::StrCat("  ", Icon(stage.state(), options), " ",
                                 Styled(name, pending ? Style::kDim : Style::kPlain, options.terminal.color), "  ",
                                 StageDetail(job, stage, options)));
    for (std::string& line : FailureLines(stage, options)) lines.push_back(std::move(line));
  }
  for (std::string& line : lines) {
    while (!line.empty() && line.back() == ' ') line.pop_back();
    std::replace(line.begin(), line.end(), '\n', ' ');
    // One column stays free, so that no terminal wraps.
    line = Truncate(line, std::max(20, options.terminal.width - 1), options.terminal.unicode);
  }
  return lines;
}

std::string PlainProgress(const v1::Job& job) {
  if (HasEnded(job.state())) {
    return absl::StrCat(job.job_id(), " ", JobStateName(job.state()), TotalTime(job), job.message().empty() ? "" : ": ",
                        job.message());
  }
  const v1::StageStatus* stage = CurrentStage(job);
  if (stage == nullptr) return absl::StrCat(job.job_id(), " ", JobStateName(job.state()));
  std::string line = StageName(stage->stage());
  if (const std::string reason = WaitReason(*stage); !reason.empty()) return absl::StrCat(line, ": waits: ", reason);
  const v1::Progress& progress = stage->progress();
  if (progress.total() > 0) {
    std::vector<std::string> parts = ProgressParts(progress, stage->stage() == v1::STAGE_TRAIN);
    parts.insert(parts.begin(), DoneOfTotal(progress));
    return absl::StrCat(line, ": ", absl::StrJoin(parts, ", "));
  }
  return absl::StrCat(line, ": ", progress.message().empty() ? StageStateName(stage->state()) : progress.message());
}

std::optional<std::string> PlainProgressFilter::Update(const v1::Job& job, absl::Time now) {
  std::string states = absl::StrCat(job.state());
  const v1::StageStatus* stage = CurrentStage(job);
  for (const v1::StageStatus& one : job.stages()) absl::StrAppend(&states, " ", one.state());
  if (stage != nullptr) absl::StrAppend(&states, " ", WaitReason(*stage));
  const std::string line = PlainProgress(job);
  const bool changed = states != last_states_;
  if (line == last_line_ || (!changed && now - last_at_ < interval_)) return std::nullopt;
  last_states_ = states;
  last_line_ = line;
  last_at_ = now;
  return line;
}

std::string StatusText(const v1::Job& job, const TextOptions& options) {
  std::string text = absl::StrCat(absl::StrJoin(ProgressLines(job, options), "\n"), "\n");
  std::vector<std::string> workers;
  for (const v1::StageStatus& stage : job.stages()) {
    for (const v1::Task& task : stage.tasks()) {
      if (task.state() != v1::TASK_STATE_RUNNING && task.state() != v1::TASK_STATE_ASSIGNED) continue;
      workers.push_back(absl::StrCat(ShortTaskId(task.ref().task_id()), " on ", task.worker_id()));
    }
  }
  if (!workers.empty()) absl::StrAppend(&text, "\n  tasks ", absl::StrJoin(workers, ", "), "\n");
  if (const std::string curve = LossCurve(job.result(), options); !curve.empty())
    absl::StrAppend(&text, "\n", Indent(curve));
  if (const std::string table = AccuracyTable(job.result(), options); !table.empty()) {
    absl::StrAppend(&text, "\n", Indent(table));
  }
  return text;
}

std::string ReportText(const v1::Job& job, const TextOptions& options) {
  std::string text = Heading(job, options) + "\n";
  if (!job.message().empty()) absl::StrAppend(&text, "  ", job.message(), "\n");
  if (const std::string table = AccuracyTable(job.result(), options); !table.empty()) {
    absl::StrAppend(&text, "\n", Indent(table));
  }
  Table outcomes({"stage", ">time", "outcomes"});
  for (const v1::StageStatus& stage : job.stages()) {
    if (stage.state() == v1::STAGE_STATE_PENDING) continue;
    const std::string yield = YieldText(job, stage);
    outcomes.AddRow({StageName(stage.stage()), FormatSeconds(stage.seconds()),
                     stage.state() == v1::STAGE_STATE_SUCCEEDED
                         ? yield
                         : absl::StrCat(StageStateName(stage.state()), yield.empty() ? "" : ": ", yield)});
  }
  if (!outcomes.empty()) absl::StrAppend(&text, "\n", Indent(outcomes.ToString(options.terminal.color)));
  return text;
}

std::string WorkersText(const std::vector<v1::WorkerStatus>& workers, absl::Time now, const TextOptions& options) {
  Table table({"worker", "host", "state", ">slots", ">cores", ">memory", "gpus", ">failures", ">seen", "tasks"});
  for (const v1::WorkerStatus& worker : workers) {
    std::vector<std::string> tasks;
    for (const v1::TaskRef& task : worker.tasks()) tasks.push_back(task.task_id());
    std::string gpus = "-";
    if (worker.resources().gpus_size() > 0) {
      gpus = absl::StrCat(worker.resources().gpus_size(), " x ", worker.resources().gpus(0).name());
    }
    const double seen =
        worker.has_last_heartbeat_at() ? absl::ToDoubleSeconds(now - ToTime(worker.last_heartbeat_at())) : -1;
    table.AddRow({worker.worker_id(), worker.hostname(), WorkerStateName(worker.state()),
                  absl::StrCat(worker.resources().cpu_slots()), absl::StrCat(worker.resources().cpu_cores()),
                  FormatBytes(worker.resources().memory_bytes()), gpus, absl::StrCat(worker.recent_failures()),
                  seen < 0 ? "-" : absl::StrCat(FormatSeconds(seen), " ago"), absl::StrJoin(tasks, " ")});
  }
  return table.ToString(options.terminal.color);
}

}  // namespace retort::cli
