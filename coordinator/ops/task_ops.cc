#include "coordinator/ops/task_ops.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/log.h"
#include "common/status.h"
#include "coordinator/ops/gang_ops.h"
#include "coordinator/ops/job_ops.h"
#include "coordinator/ops/results.h"
#include "coordinator/ops/worker_ops.h"
#include "coordinator/proto_time.h"
#include "coordinator/transitions.h"

namespace retort {
namespace {

constexpr char kCheckpointPrefix[] = "checkpoint-";
constexpr size_t kMaxErrorBytes = 4000;
constexpr int kRollingCheckpointsKept = 2;
constexpr absl::Duration kFirstBackoff = absl::Milliseconds(200);
constexpr absl::Duration kMaxBackoff = absl::Seconds(10);

std::string Bounded(const std::string& text) {
  if (text.size() <= kMaxErrorBytes) return text;
  return absl::StrCat(text.substr(0, kMaxErrorBytes), " [", text.size() - kMaxErrorBytes, " more bytes]");
}

PlacementEntry* FindPlacement(State* state, const internal::TaskRecord& record, WorkerEntry** worker) {
  *worker = state->FindWorker(record.worker_id());
  if (*worker == nullptr) return nullptr;
  const auto found = (*worker)->placements.find({record.task_id(), record.epoch()});
  return found == (*worker)->placements.end() ? nullptr : &found->second;
}

// Takes the placement out of what its worker should run. The slot stays taken until the process is gone.
void Withdraw(State* state, const internal::TaskRecord& record) {
  WorkerEntry* worker = nullptr;
  PlacementEntry* placement = FindPlacement(state, record, &worker);
  if (placement == nullptr || placement->withdrawn) return;
  placement->withdrawn = true;
  placement->withdrawn_at = state->Now();
  state->TouchAssignments(worker);
}

absl::Status CheckResult(const internal::TaskRecord& task, const v1::TaskResult& result) {
  const auto lacks = [&](const char* what) {
    return absl::InvalidArgumentError(absl::StrCat("the result of ", task.task_id(), " lacks ", what));
  };
  switch (task.stage()) {
    case v1::STAGE_CURATE:
      if (result.dataset_size() == 0) return lacks("its dataset");
      if (result.manifest_sha256().empty()) return lacks("its manifest");
      return absl::OkStatus();
    case v1::STAGE_EVALUATE:
      if (task.group() > 0 && result.evaluations_size() == 0) return lacks("its evaluations");
      return absl::OkStatus();
    case v1::STAGE_TRAIN:
      if (result.has_final_checkpoint() && result.final_checkpoint().artifact_id().empty())
        return lacks("its checkpoint's artifact");
      return absl::OkStatus();
    default:
      return absl::OkStatus();
  }
}

// Losses up to a checkpoint are exactly the checkpoint's: those of a run that was rolled back do not show through.
void TakeLosses(State* state, JobEntry* job, const v1::Checkpoint& checkpoint) {
  if (checkpoint.losses_size() == 0) return;
  auto& losses = job->losses;
  losses.erase(losses.begin(), losses.upper_bound(checkpoint.step()));
  for (const v1::LossPoint& point : checkpoint.losses()) losses[point.step()] = point;
  state->MarkLosses(job);
}

// Rolling checkpoints are there to resume from; the others are what save_total_limit is about.
void ApplyRetention(State* state, const v1::JobSpec& spec, v1::JobResult* result) {
  const auto keep_newest = [&](bool rolling, int limit) {
    const auto is_meant = [&](const v1::JobArtifact& artifact) {
      return absl::StartsWith(artifact.name(), kCheckpointPrefix) && artifact.rolling() == rolling;
    };
    auto& artifacts = *result->mutable_artifacts();
    auto surplus = std::count_if(artifacts.begin(), artifacts.end(), is_meant) - limit;
    for (int i = 0; i < artifacts.size() && surplus > 0;) {
      if (!is_meant(artifacts[i])) {
        ++i;
        continue;
      }
      state->RetireArtifact(artifacts[i].artifact_id());
      artifacts.DeleteSubrange(i, 1);
      --surplus;
    }
  };
  keep_newest(true, kRollingCheckpointsKept);
  const int limit = spec.student().training().save_total_limit();
  if (limit > 0) keep_newest(false, limit);
}

// The job has lost its newest checkpoint: the one before is the newest now, and the losses after it will come again.
void DropCheckpoint(State* state, JobEntry* job) {
  const v1::Checkpoint lost = job->record.checkpoint();
  job->record.clear_checkpoint();
  auto& artifacts = *job->record.mutable_result()->mutable_artifacts();
  for (int i = 0; i < artifacts.size();) {
    absl::string_view step_text = artifacts[i].name();
    int64_t step = 0;
    if (!absl::ConsumePrefix(&step_text, kCheckpointPrefix) || !absl::SimpleAtoi(step_text, &step)) {
      ++i;
    } else if (artifacts[i].artifact_id() == lost.artifact_id()) {
      state->RetireArtifact(lost.artifact_id());
      artifacts.DeleteSubrange(i, 1);
    } else {
      if (!job->record.has_checkpoint() || step > job->record.checkpoint().step()) {
        job->record.mutable_checkpoint()->set_step(step);
        job->record.mutable_checkpoint()->set_artifact_id(artifacts[i].artifact_id());
      }
      ++i;
    }
  }
  job->losses.erase(job->losses.upper_bound(job->record.checkpoint().step()), job->losses.end());
  state->MarkLosses(job);
  state->MarkJob(job);
  spdlog::error("checkpoint_lost job_id={} step={} artifact_id={} goes_on_from_step={}", job->record.job_id(),
                lost.step(), lost.artifact_id(), job->record.checkpoint().step());
}

// Notes what the task has done; true: that is more than ever before.
bool MakesProgress(const JobEntry& job, internal::StageRecord* stage, TaskEntry* task, const v1::Progress& progress) {
  // Generating tasks count traces that are stored, ranks optimizer steps.
  const char* unit = stage->stage() == v1::STAGE_TRAIN ? "steps" : "traces";
  if (progress.unit() != unit) return false;
  const bool own_work = RunningGroup(job, *stage).kind == GroupKind::kSeparate;
  const int64_t mark = own_work ? task->record.progress_mark() : stage->progress_mark();
  if (progress.done() <= mark) return false;
  own_work ? task->record.set_progress_mark(progress.done()) : stage->set_progress_mark(progress.done());
  return true;
}

}  // namespace

absl::Duration RetryBackoff(int failures_in_a_row) {
  if (failures_in_a_row <= 1) return absl::ZeroDuration();
  return std::min(kMaxBackoff, kFirstBackoff * std::pow(2.0, std::min(20, failures_in_a_row - 2)));
}

void MarkRunning(State* state, JobEntry* job, TaskEntry* task) {
  if (task->record.state() != v1::TASK_STATE_ASSIGNED) return;
  task->listed_at = state->Now();
  state->MoveTask(job, task, v1::TASK_STATE_RUNNING).IgnoreError();
}

void MarkHeard(State* state, JobEntry* job, TaskEntry* task) {
  task->heard_at = state->Now();
  MarkRunning(state, job, task);
}

void WithdrawPlacement(State* state, JobEntry* job, TaskEntry* task, v1::TaskState to) {
  Withdraw(state, task->record);
  state->ReleaseLeases(task->record.task_id(), task->record.epoch());
  task->progress.Clear();
  state->MoveTask(job, task, to).IgnoreError();
}

void LosePlacement(State* state, JobEntry* job, TaskEntry* task, const std::string& error, Blame blame) {
  internal::TaskRecord& record = task->record;
  if (!IsPlaced(record.state())) return;
  const absl::Time now = state->Now();
  record.set_failures(record.failures() + 1);
  record.set_failures_in_a_row(record.failures_in_a_row() + 1);
  record.set_last_error(Bounded(error));
  *record.mutable_not_before() = ToProto(now + RetryBackoff(record.failures_in_a_row()));
  task->lost_at = now;
  WithdrawPlacement(state, job, task, v1::TASK_STATE_WAITING);
  internal::StageRecord* stage = RunningStage(job);
  if (stage == nullptr || stage->stage() != record.stage()) return;
  stage->add_recent_errors(absl::StrCat(record.task_id(), ": ", record.last_error()));
  if (stage->recent_errors_size() > kRecentErrorsKept) stage->mutable_recent_errors()->DeleteSubrange(0, 1);
  state->MarkJob(job);
  if (blame == Blame::kJob && now >= job->charged_at + state->options().one_failure_within) {
    job->charged_at = now;
    if (stage->failures_left() <= 0) {
      FailJob(state, job,
              absl::StrCat(
                  "the ", ShortName(stage->stage()), " stage failed ", job->spec->max_infrastructure_failures() + 1,
                  " times without progress (max_infrastructure_failures: ", job->spec->max_infrastructure_failures(),
                  "). The last errors: ", absl::StrJoin(stage->recent_errors(), " | ")));
      return;
    }
    stage->set_failures_left(stage->failures_left() - 1);
  }
  if (record.stage() == v1::STAGE_TRAIN && !task->grows) OnMembershipChange(state, job);
  AdvanceJob(state, job);  // its peers may have completed the work already
}

absl::Status CompleteTask(State* state, const v1::TaskRef& ref, const v1::TaskResult& result) {
  JobEntry* job = nullptr;
  TaskEntry* task = state->FindTask(ref.task_id(), &job);
  if (task != nullptr && task->record.epoch() == ref.epoch() && task->record.state() == v1::TASK_STATE_SUCCEEDED) {
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(state->CheckFence(ref, &job, &task));
  RETURN_IF_ERROR(CheckResult(task->record, result));
  if (result.has_final_checkpoint()) TakeLosses(state, job, result.final_checkpoint());
  *task->record.mutable_result() = result;
  if (result.has_final_checkpoint()) task->record.mutable_result()->mutable_final_checkpoint()->clear_losses();
  task->record.clear_last_error();
  task->finished_at = state->Now();
  state->ReleaseLeases(ref.task_id(), ref.epoch());
  RETURN_IF_ERROR(state->MoveTask(job, task, v1::TASK_STATE_SUCCEEDED));
  AdvanceJob(state, job);
  return absl::OkStatus();
}

absl::Status FailTask(State* state, const v1::TaskRef& ref, v1::FailureCause cause, const std::string& message,
                      const std::string& damaged_artifact_id) {
  if (cause == v1::FAILURE_CAUSE_UNSPECIFIED) return absl::InvalidArgumentError("cause: must be given");
  JobEntry* job = nullptr;
  TaskEntry* task = state->FindTask(ref.task_id(), &job);
  if (task != nullptr && task->record.failed_epoch() == ref.epoch() && ref.epoch() != 0) return absl::OkStatus();
  RETURN_IF_ERROR(state->CheckFence(ref, &job, &task));
  task->record.set_failed_epoch(ref.epoch());
  if (cause == v1::FAILURE_CAUSE_INFRASTRUCTURE) {
    // What the store has lost is no fault of the worker.
    if (damaged_artifact_id.empty()) NoteFailure(state, task->record.worker_id());
    if (task->record.stage() == v1::STAGE_TRAIN && !damaged_artifact_id.empty() &&
        job->record.checkpoint().artifact_id() == damaged_artifact_id) {
      DropCheckpoint(state, job);
    }
    LosePlacement(state, job, task, message);
    return absl::OkStatus();
  }
  task->record.set_last_error(Bounded(message));
  WithdrawPlacement(state, job, task, v1::TASK_STATE_FAILED);
  FailJob(state, job, absl::StrCat(ShortName(task->record.stage()), ": ", task->record.last_error()));
  return absl::OkStatus();
}

absl::Status RegisterCheckpoint(State* state, const v1::TaskRef& ref, const v1::Checkpoint& checkpoint,
                                int64_t size_bytes) {
  JobEntry* job = nullptr;
  TaskEntry* task = nullptr;
  RETURN_IF_ERROR(state->CheckFence(ref, &job, &task));
  if (task->record.stage() != v1::STAGE_TRAIN) {
    return absl::InvalidArgumentError(absl::StrCat(ref.task_id(), " is no training task: it has no checkpoints"));
  }
  MarkHeard(state, job, task);
  if (job->record.has_checkpoint() && checkpoint.step() <= job->record.checkpoint().step()) return absl::OkStatus();
  TakeLosses(state, job, checkpoint);
  *job->record.mutable_checkpoint() = checkpoint;
  job->record.mutable_checkpoint()->clear_losses();
  v1::JobArtifact artifact;
  artifact.set_name(absl::StrCat(kCheckpointPrefix, checkpoint.step()));
  artifact.set_artifact_id(checkpoint.artifact_id());
  artifact.set_stage(v1::STAGE_TRAIN);
  artifact.set_size_bytes(size_bytes);
  artifact.set_rolling(checkpoint.rolling());
  PutArtifact(job->record.mutable_result(), artifact);
  ApplyRetention(state, *job->spec, job->record.mutable_result());
  internal::StageRecord* stage = RunningStage(job);
  if (stage != nullptr && checkpoint.step() > stage->checkpoint_mark()) {
    stage->set_checkpoint_mark(checkpoint.step());
    stage->set_progress_mark(std::max(stage->progress_mark(), checkpoint.step()));
    RefillBudget(state, job);
  }
  state->MarkJob(job);
  spdlog::info("checkpoint_registered job_id={} step={} artifact_id={}", job->record.job_id(), checkpoint.step(),
               checkpoint.artifact_id());
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> ReportProgress(State* state, const v1::ReportProgressRequest& request) {
  JobEntry* job = nullptr;
  TaskEntry* task = nullptr;
  RETURN_IF_ERROR(state->CheckFence(request.ref(), &job, &task));
  MarkHeard(state, job, task);
  const v1::Progress& progress = request.progress();
  if (progress.done() != task->progress.done() || progress.message() != task->progress.message())
    task->moved_at = state->Now();
  task->progress = progress;
  state->Touch(job);
  internal::StageRecord* stage = RunningStage(job);
  if (stage != nullptr && MakesProgress(*job, stage, task, progress)) {
    // The mark is written when the budget changes: what a restart forgets of it, a full budget does not miss.
    if (stage->failures_left() != job->spec->max_infrastructure_failures() || task->record.failures_in_a_row() > 0) {
      RefillBudget(state, job);
      state->MarkTask(job, *task);
    }
  }
  if (task->record.stage() != v1::STAGE_TRAIN) return 0;
  for (const v1::LossPoint& point : request.new_losses()) job->losses[point.step()] = point;
  const auto gang = state->gangs().find(job->record.job_id());
  return gang == state->gangs().end() ? 0 : gang->second.wanted_generation;
}

absl::StatusOr<v1::GetTaskResponse> GetTask(State* state, const v1::TaskRef& ref) {
  JobEntry* job = nullptr;
  TaskEntry* task = nullptr;
  RETURN_IF_ERROR(state->CheckFence(ref, &job, &task));
  ASSIGN_OR_RETURN(v1::GetTaskResponse response, BuildTask(*job->spec, job->record, task->record));
  if (response.train().has_resume_from()) {
    v1::Checkpoint& checkpoint = *response.mutable_train()->mutable_resume_from();
    for (const auto& [step, point] : job->losses) {
      if (step <= checkpoint.step()) *checkpoint.add_losses() = point;
    }
  }
  MarkHeard(state, job, task);
  return response;
}

}  // namespace retort
