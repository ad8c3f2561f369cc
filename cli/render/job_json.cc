#include "cli/render/job_json.h"

#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/time/time.h"
#include "cli/render/names.h"

namespace retort::cli {
namespace {

using nlohmann::json;

json TimeOf(const google::protobuf::Timestamp& time) {
  if (time.seconds() == 0 && time.nanos() == 0) return nullptr;
  const absl::Time at = absl::FromUnixSeconds(time.seconds()) + absl::Nanoseconds(time.nanos());
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", at, absl::UTCTimeZone());
}

json TextOrNull(const std::string& text) { return text.empty() ? json(nullptr) : json(text); }

json OutcomesOf(const v1::Outcomes& outcomes) {
  json counts = json::object();
  for (const auto& [cause, count] : outcomes.counts()) counts[cause] = count;
  return counts;
}

json ProgressOf(const v1::Progress& progress) {
  return {{"done", progress.done()},
          {"total", progress.total()},
          {"unit", progress.unit()},
          {"rate_per_second", progress.rate_per_second()},
          {"tokens_per_second", progress.tokens_per_second()},
          {"message", progress.message()}};
}

json TaskOf(const v1::Task& task) {
  return {{"task", task.ref().task_id()},
          {"epoch", task.ref().epoch()},
          {"state", TaskStateName(task.state())},
          {"worker", TextOrNull(task.worker_id())},
          {"wait_reason", TextOrNull(task.wait_reason())},
          {"failures", task.failures()},
          {"last_error", TextOrNull(task.last_error())},
          {"progress", ProgressOf(task.progress())}};
}

json LossesOf(const v1::JobResult& result) {
  json losses = json::array();
  for (const v1::LossPoint& point : result.losses()) {
    json one = {{"step", point.step()},
                {"loss", point.loss()},
                {"grad_norm", point.grad_norm()},
                {"learning_rate", point.learning_rate()}};
    if (point.has_eval_loss()) one["eval_loss"] = point.eval_loss();
    losses.push_back(std::move(one));
  }
  return losses;
}

json AccuraciesOf(const v1::EvaluationResult* evaluation) {
  const auto value = [&](bool there, double share) {
    return evaluation != nullptr && there ? json(share) : json(nullptr);
  };
  static const v1::EvaluationResult kNone;
  const v1::EvaluationResult& from = evaluation == nullptr ? kNone : *evaluation;
  return {{"base", value(from.has_base(), from.base())},
          {"teacher", value(from.has_teacher(), from.teacher())},
          {"student", value(from.has_student(), from.student())}};
}

json EvaluationsOf(const v1::JobResult& result, bool samples) {
  json evaluations = json::array();
  for (const v1::EvaluationResult& evaluation : result.evaluations()) {
    json one = AccuraciesOf(&evaluation);
    one["prompts"] = evaluation.prompts();
    one["n"] = evaluation.n();
    if (samples) {
      one["prompt_count"] = evaluation.prompt_count();
      one["samples"] = json::array();
      for (const v1::EvaluationSample& sample : evaluation.samples()) {
        one["samples"].push_back({{"prompt", sample.prompt()},
                                  {"answer", sample.answer()},
                                  {"base", sample.base()},
                                  {"teacher", sample.teacher()},
                                  {"student", sample.student()},
                                  {"base_correct", sample.base_correct()},
                                  {"teacher_correct", sample.teacher_correct()},
                                  {"student_correct", sample.student_correct()}});
      }
    }
    evaluations.push_back(std::move(one));
  }
  return evaluations;
}

json VersionsOf(const v1::JobResult& result) {
  json versions = json::object();
  for (const auto& [name, version] : result.versions()) versions[name] = version;
  return versions;
}

const v1::EvaluationResult* FirstEvaluation(const v1::JobResult& result) {
  return result.evaluations_size() > 0 ? &result.evaluations(0) : nullptr;
}

}  // namespace

const v1::StageStatus* CurrentStage(const v1::Job& job) {
  for (const v1::StageStatus& stage : job.stages()) {
    if (stage.state() != v1::STAGE_STATE_SUCCEEDED) return &stage;
  }
  return job.stages_size() > 0 ? &job.stages(job.stages_size() - 1) : nullptr;
}

json JobSummaryToJson(const v1::Job& job) {
  const v1::StageStatus* stage = CurrentStage(job);
  return {{"job", job.job_id()},
          {"name", job.spec().name()},
          {"state", JobStateName(job.state())},
          {"message", TextOrNull(job.message())},
          {"stage", stage == nullptr ? json(nullptr) : json(StageName(stage->stage()))},
          {"submitted_at", TimeOf(job.submitted_at())},
          {"finished_at", TimeOf(job.finished_at())}};
}

json JobToJson(const v1::Job& job) {
  json stages = json::array();
  for (const v1::StageStatus& stage : job.stages()) {
    json tasks = json::array();
    for (const v1::Task& task : stage.tasks()) tasks.push_back(TaskOf(task));
    stages.push_back({{"stage", StageName(stage.stage())},
                      {"state", StageStateName(stage.state())},
                      {"outcomes", OutcomesOf(stage.outcomes())},
                      {"progress", ProgressOf(stage.progress())},
                      {"seconds", stage.seconds()},
                      {"started_at", TimeOf(stage.started_at())},
                      {"finished_at", TimeOf(stage.finished_at())},
                      {"tasks", std::move(tasks)}});
  }
  json artifacts = json::array();
  for (const v1::JobArtifact& artifact : job.result().artifacts()) {
    artifacts.push_back({{"name", artifact.name()},
                         {"artifact_id", artifact.artifact_id()},
                         {"stage", StageName(artifact.stage())},
                         {"size_bytes", artifact.size_bytes()}});
  }
  json document = JobSummaryToJson(job);
  document["output_dir"] = job.spec().output_dir();
  document["stages"] = std::move(stages);
  document["losses"] = LossesOf(job.result());
  document["evaluations"] = EvaluationsOf(job.result(), /*samples=*/true);
  document["accuracies"] = AccuraciesOf(FirstEvaluation(job.result()));
  document["artifacts"] = std::move(artifacts);
  document["adapter_sha256"] = TextOrNull(job.result().adapter_sha256());
  document["manifest_sha256"] = TextOrNull(job.result().manifest_sha256());
  document["versions"] = VersionsOf(job.result());
  return document;
}

json ResultJson(const v1::Job& job) {
  json outcomes = json::object();
  json seconds = json::object();
  for (const v1::StageStatus& stage : job.stages()) {
    if (stage.state() == v1::STAGE_STATE_PENDING) continue;
    outcomes[StageName(stage.stage())] = OutcomesOf(stage.outcomes());
    seconds[StageName(stage.stage())] = stage.seconds();
  }
  return {{"job", job.job_id()},
          {"state", JobStateName(job.state())},
          {"outcomes", std::move(outcomes)},
          {"evaluations", EvaluationsOf(job.result(), /*samples=*/false)},
          {"accuracies", AccuraciesOf(FirstEvaluation(job.result()))},
          {"losses", LossesOf(job.result())},
          {"adapter_sha256", TextOrNull(job.result().adapter_sha256())},
          {"manifest_sha256", TextOrNull(job.result().manifest_sha256())},
          {"seconds_by_stage", std::move(seconds)},
          {"versions", VersionsOf(job.result())}};
}

json WorkerToJson(const v1::WorkerStatus& worker) {
  json gpus = json::array();
  for (const v1::Gpu& gpu : worker.resources().gpus()) {
    gpus.push_back({{"index", gpu.index()}, {"name", gpu.name()}, {"memory_bytes", gpu.memory_bytes()}});
  }
  json tasks = json::array();
  for (const v1::TaskRef& task : worker.tasks()) tasks.push_back({{"task", task.task_id()}, {"epoch", task.epoch()}});
  return {{"worker", worker.worker_id()},
          {"hostname", worker.hostname()},
          {"state", WorkerStateName(worker.state())},
          {"cpu_slots", worker.resources().cpu_slots()},
          {"cpu_cores", worker.resources().cpu_cores()},
          {"memory_bytes", worker.resources().memory_bytes()},
          {"gpus", std::move(gpus)},
          {"tasks", std::move(tasks)},
          {"recent_failures", worker.recent_failures()},
          {"last_heartbeat_at", TimeOf(worker.last_heartbeat_at())}};
}

json SampleSetToJson(const v1::SampleSetInfo& set) {
  return {{"set", set.sample_set_id()},
          {"sealed", set.sealed()},
          {"prompts", set.prompt_count()},
          {"n", set.n()},
          {"traces", set.trace_count()},
          {"leased", set.leased_count()},
          {"model_revision", absl::BytesToHexString(set.model_revision())},
          {"outcomes", OutcomesOf(set.outcomes())}};
}

json TraceToJson(const v1::Prompt& prompt, const v1::Trace& trace) {
  json document = {{"prompt_index", prompt.prompt_index()},
                   {"sample_index", trace.key().sample_index()},
                   {"prompt_hash", absl::BytesToHexString(trace.key().prompt_hash())},
                   {"model_revision", absl::BytesToHexString(trace.key().model_revision())},
                   {"sampling_hash", absl::BytesToHexString(trace.key().sampling_hash())},
                   {"messages", json::parse(prompt.messages_json(), nullptr, /*allow_exceptions=*/false)},
                   {"answer", TextOrNull(prompt.answer())},
                   {"text", trace.text()},
                   {"finish_reason", trace.finish_reason()},
                   {"prompt_tokens", trace.prompt_tokens()},
                   {"completion_tokens", trace.completion_tokens()},
                   {"created_at", TimeOf(trace.created_at())}};
  if (document["messages"].is_discarded()) document["messages"] = nullptr;
  if (!trace.reasoning().empty()) document["reasoning"] = trace.reasoning();
  if (!trace.error().empty()) document["error"] = trace.error();
  if (trace.token_ids_size() > 0)
    document["token_ids"] = std::vector<int>(trace.token_ids().begin(), trace.token_ids().end());
  return document;
}

json StoreStatsToJson(const v1::GetStoreStatsResponse& stats) {
  return {{"prompts", stats.prompts()},       {"traces", stats.traces()},
          {"partials", stats.partials()},     {"leases", stats.leases()},
          {"manifests", stats.manifests()},   {"sample_sets", stats.sample_sets()},
          {"disk_bytes", stats.disk_bytes()}, {"traces_by_finish_reason", OutcomesOf(stats.traces_by_finish_reason())}};
}

}  // namespace retort::cli
