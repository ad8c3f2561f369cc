#include "coordinator/view.h"

#include <algorithm>

#include "coordinator/ops/job_ops.h"
#include "coordinator/proto_time.h"
#include "coordinator/transitions.h"

namespace retort {
namespace {

constexpr absl::Duration kRecent = absl::Minutes(10);

v1::Task ViewTask(const TaskEntry& task) {
  const internal::TaskRecord& record = task.record;
  v1::Task view;
  view.mutable_ref()->set_task_id(record.task_id());
  view.mutable_ref()->set_epoch(record.epoch());
  view.set_state(record.state());
  if (IsPlaced(record.state())) view.set_worker_id(record.worker_id());
  if (record.state() == v1::TASK_STATE_WAITING) view.set_wait_reason(task.wait_reason);
  view.set_failures(record.failures());
  view.set_last_error(record.last_error());
  *view.mutable_progress() = task.progress;
  return view;
}

// Replicas of shared work and ranks of a gang all count the same units; separate tasks each their own.
void AddProgress(GroupKind kind, const v1::Progress& task, v1::Progress* stage) {
  if (kind == GroupKind::kSeparate) {
    stage->set_done(stage->done() + task.done());
    stage->set_total(stage->total() + task.total());
  } else {
    stage->set_done(std::max(stage->done(), task.done()));
    stage->set_total(std::max(stage->total(), task.total()));
  }
  if (kind == GroupKind::kGang) {
    stage->set_rate_per_second(std::max(stage->rate_per_second(), task.rate_per_second()));
    stage->set_tokens_per_second(std::max(stage->tokens_per_second(), task.tokens_per_second()));
  } else {
    stage->set_rate_per_second(stage->rate_per_second() + task.rate_per_second());
    stage->set_tokens_per_second(stage->tokens_per_second() + task.tokens_per_second());
  }
  if (!task.unit().empty()) stage->set_unit(task.unit());
  if (task.loss() != 0) stage->set_loss(task.loss());
  if (stage->message().empty()) stage->set_message(task.message());
}

double SecondsOf(const internal::StageRecord& stage, absl::Time now) {
  double seconds = stage.earlier_seconds();
  if (!stage.has_started_at()) return seconds;
  const absl::Time end = stage.has_finished_at() ? FromProto(stage.finished_at()) : now;
  return seconds + std::max(0.0, absl::ToDoubleSeconds(end - FromProto(stage.started_at())));
}

v1::StageStatus ViewStage(const State& state, const JobEntry& job, const internal::StageRecord& stage,
                          bool with_tasks) {
  v1::StageStatus view;
  view.set_stage(stage.stage());
  view.set_state(stage.state());
  *view.mutable_outcomes() = stage.outcomes();
  if (stage.has_started_at()) *view.mutable_started_at() = stage.started_at();
  if (stage.has_finished_at()) *view.mutable_finished_at() = stage.finished_at();
  view.set_seconds(SecondsOf(stage, state.Now()));
  const GroupKind kind = RunningGroup(job, stage).kind;
  for (const auto& [task_id, task] : job.tasks) {
    if (task.record.stage() != stage.stage()) continue;
    if (task.record.group() == stage.group()) AddProgress(kind, task.progress, view.mutable_progress());
    if (with_tasks) *view.add_tasks() = ViewTask(task);
  }
  return view;
}

v1::Job Basics(const JobEntry& job) {
  v1::Job view;
  view.set_job_id(job.record.job_id());
  view.set_state(job.record.state());
  view.set_message(job.record.message());
  *view.mutable_submitted_at() = job.record.submitted_at();
  if (job.record.has_finished_at()) *view.mutable_finished_at() = job.record.finished_at();
  return view;
}

}  // namespace

v1::Job ViewJob(const State& state, const JobEntry& job) {
  v1::Job view = Basics(job);
  *view.mutable_spec() = *job.spec;
  for (const internal::StageRecord& stage : job.record.stages())
    *view.add_stages() = ViewStage(state, job, stage, true);
  *view.mutable_result() = job.record.result();
  if (view.result().manifest_sha256().empty() && job.spec->dataset_size() > 0) {
    view.mutable_result()->set_manifest_sha256(ManifestSha256(*job.spec, job.record));
  }
  for (const auto& [step, point] : job.losses) *view.mutable_result()->add_losses() = point;
  return view;
}

v1::Job SummariseJob(const State& state, const JobEntry& job) {
  v1::Job view = Basics(job);
  view.mutable_spec()->set_name(job.spec->name());
  view.mutable_spec()->set_output_dir(job.spec->output_dir());
  for (const internal::StageRecord& stage : job.record.stages())
    *view.add_stages() = ViewStage(state, job, stage, false);
  return view;
}

v1::WorkerStatus ViewWorker(const State& state, const WorkerEntry& worker) {
  v1::WorkerStatus view;
  view.set_worker_id(worker.worker_id);
  view.set_hostname(worker.hostname);
  *view.mutable_resources() = worker.resources;
  view.set_state(worker.ends() && worker.state == v1::WORKER_STATE_READY ? v1::WORKER_STATE_DRAINING : worker.state);
  for (const auto& [key, placement] : worker.placements) {
    if (placement.withdrawn) continue;
    v1::TaskRef& ref = *view.add_tasks();
    ref.set_task_id(key.first);
    ref.set_epoch(key.second);
  }
  *view.mutable_last_heartbeat_at() = ToProto(worker.last_heartbeat);
  const absl::Time now = state.Now();
  view.set_recent_failures(static_cast<int>(std::count_if(worker.failures.begin(), worker.failures.end(),
                                                          [&](absl::Time at) { return at + kRecent >= now; })));
  return view;
}

}  // namespace retort
