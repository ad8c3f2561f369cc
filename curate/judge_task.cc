#include <spdlog/spdlog.h>

#include <map>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/rpc/sample_client.h"
#include "common/status.h"
#include "common/text.h"
#include "curate/judge.h"
#include "curate/tasks.h"

namespace retort::curate {
namespace {

constexpr int64_t kShownPrompts = 20;
constexpr size_t kShownBytes = 8 << 10;  // of each text
constexpr int64_t kReportEvery = 256;    // traces

// Everything that one evaluation gathers while its sets are read.
struct Judgement {
  v1::EvaluationResult result;
  std::map<int64_t, v1::EvaluationSample> shown;  // by prompt index
  std::map<std::string, int64_t> outcomes;
};

void Show(const v1::Prompt& prompt, const v1::Trace& trace, absl::string_view model, bool correct,
          Judgement* judgement) {
  v1::EvaluationSample& sample = judgement->shown[prompt.prompt_index()];
  const std::string text = ValidUtf8(trace.reasoning().empty()
                                         ? trace.text()
                                         : absl::StrCat("<think>\n", trace.reasoning(), "\n</think>\n\n", trace.text()),
                                     kShownBytes);
  if (model == "student" || sample.prompt().empty()) {
    sample.set_prompt(ValidUtf8(UserTurn(prompt), kShownBytes));
    sample.set_answer(ValidUtf8(prompt.answer(), kShownBytes));
  }
  if (model == "base") {
    sample.set_base(text);
    sample.set_base_correct(correct);
  } else if (model == "teacher") {
    sample.set_teacher(text);
    sample.set_teacher_correct(correct);
  } else {
    sample.set_student(text);
    sample.set_student_correct(correct);
  }
}

absl::StatusOr<double> JudgeModel(TaskContext& context, SampleClient& samples, const v1::SampleSet& set,
                                  absl::string_view model, const Verifier& verifier, v1::Progress* progress,
                                  Judgement* judgement) {
  ASSIGN_OR_RETURN(const v1::SampleSetInfo info, samples.GetSampleSet(set.sample_set_id()));
  progress->set_total(progress->total() + info.trace_count());
  ModelScore score(model, verifier);
  RETURN_IF_ERROR(samples.ListTraces(set.sample_set_id(), [&](const v1::Prompt& prompt, const v1::Trace& trace) {
    const bool correct = score.Add(prompt, trace);
    if (prompt.prompt_index() < kShownPrompts && trace.key().sample_index() == 0)
      Show(prompt, trace, model, correct, judgement);
    progress->set_done(progress->done() + 1);
    if (progress->done() % kReportEvery == 0) context.ReportProgress(*progress);
    return absl::OkStatus();
  }));
  const double accuracy = score.Finish(info.prompt_count() * info.n());
  score.AddOutcomes(&judgement->outcomes);
  judgement->result.set_n(info.n());
  judgement->result.set_prompt_count(info.prompt_count());
  spdlog::info("judged sample_set={} model={} samples={} accuracy={:.4f}", set.sample_set_id(), std::string(model),
               info.prompt_count() * info.n(), accuracy);
  return accuracy;
}

}  // namespace

absl::StatusOr<v1::TaskResult> RunJudgeTask(TaskContext& context, const v1::JudgeTask& task) {
  SampleClient samples(context.channel(), context.ref());
  v1::Progress progress;
  progress.set_unit("traces");
  v1::TaskResult result;
  std::map<std::string, int64_t> outcomes;
  for (const v1::JudgeTask::Evaluation& evaluation : task.evaluations()) {
    v1::VerifySpec verify = evaluation.spec().verify();
    if (verify.kind() == v1::VERIFIER_KIND_UNSPECIFIED) verify.set_kind(v1::VERIFIER_KIND_NUMBER);
    ASSIGN_OR_RETURN(const Verifier verifier, Verifier::Make(verify));
    Judgement judgement;
    judgement.result.set_prompts(evaluation.spec().prompts().path());
    if (evaluation.has_base()) {
      ASSIGN_OR_RETURN(const double accuracy,
                       JudgeModel(context, samples, evaluation.base(), "base", verifier, &progress, &judgement));
      judgement.result.set_base(accuracy);
    }
    if (evaluation.has_teacher()) {
      ASSIGN_OR_RETURN(const double accuracy,
                       JudgeModel(context, samples, evaluation.teacher(), "teacher", verifier, &progress, &judgement));
      judgement.result.set_teacher(accuracy);
    }
    if (evaluation.has_student()) {
      ASSIGN_OR_RETURN(const double accuracy,
                       JudgeModel(context, samples, evaluation.student(), "student", verifier, &progress, &judgement));
      judgement.result.set_student(accuracy);
    }
    for (auto& [index, sample] : judgement.shown) *judgement.result.add_samples() = std::move(sample);
    for (const auto& [name, count] : judgement.outcomes) outcomes[name] += count;
    *result.add_evaluations() = std::move(judgement.result);
  }
  context.ReportProgress(progress);
  for (const auto& [name, count] : outcomes) (*result.mutable_outcomes()->mutable_counts())[name] = count;
  return result;
}

}  // namespace retort::curate
