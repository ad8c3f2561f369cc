#include "coordinator/ops/job_ops.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/id.h"
#include "common/log.h"
#include "common/status.h"
#include "common/version.h"
#include "coordinator/ops/results.h"
#include "coordinator/ops/task_ops.h"
#include "coordinator/proto_time.h"
#include "coordinator/transitions.h"

namespace retort {
namespace {

constexpr int kJobIdHexDigits = 6;

bool IsInRunningGroup(const internal::StageRecord& stage, const TaskEntry& task) {
  return task.record.stage() == stage.stage() && task.record.group() == stage.group();
}

void AddGroupTasks(State* state, JobEntry* job, const internal::StageRecord& stage) {
  const TaskGroup group = RunningGroup(*job, stage);
  for (int replica = 0; replica < group.max; ++replica) {
    const std::string task_id = TaskId(job->record.job_id(), stage.stage(), stage.group(), replica);
    TaskEntry& task = job->tasks[task_id];
    if (!task.record.task_id().empty()) continue;  // of a job that was resumed
    task.record.set_task_id(task_id);
    task.record.set_stage(stage.stage());
    task.record.set_group(stage.group());
    task.record.set_replica(replica);
    task.record.set_state(v1::TASK_STATE_WAITING);
    task.record.set_process_gone(true);
    state->MarkTask(job, task);
  }
  state->TouchSchedule();
}

// Starts the first stage that has not ended; there must be one.
void StartNextStage(State* state, JobEntry* job) {
  for (internal::StageRecord& stage : *job->record.mutable_stages()) {
    if (stage.state() != v1::STAGE_STATE_PENDING) continue;
    if (!state->MoveStage(job, &stage, v1::STAGE_STATE_RUNNING).ok()) return;
    stage.set_failures_left(job->spec->max_infrastructure_failures());
    AddGroupTasks(state, job, stage);
    return;
  }
}

// Ends all that runs or waits in the job. `stage_state` is what its running stage becomes.
void StopJob(State* state, JobEntry* job, v1::StageState stage_state) {
  for (auto& [task_id, task] : job->tasks) {
    const v1::TaskState task_state = task.record.state();
    if (IsPlaced(task_state)) {
      WithdrawPlacement(state, job, &task, v1::TASK_STATE_CANCELLED);
    } else if (task_state == v1::TASK_STATE_WAITING) {
      state->MoveTask(job, &task, v1::TASK_STATE_CANCELLED).IgnoreError();
    }
    task.wait_reason.clear();
  }
  for (internal::StageRecord& stage : *job->record.mutable_stages()) {
    if (stage.state() == v1::STAGE_STATE_RUNNING) {
      state->MoveStage(job, &stage, stage_state).IgnoreError();
    } else if (stage.state() == v1::STAGE_STATE_PENDING) {
      state->MoveStage(job, &stage, v1::STAGE_STATE_CANCELLED).IgnoreError();
    }
  }
  state->gangs().erase(job->record.job_id());
}

// Whether the running group's work is done, and since when.
bool IsGroupDone(const JobEntry& job, const internal::StageRecord& stage, const TaskGroup& group, absl::Time* since) {
  *since = absl::InfiniteFuture();
  bool all = true;
  for (const auto& [task_id, task] : job.tasks) {
    if (!IsInRunningGroup(stage, task)) continue;
    if (task.record.state() != v1::TASK_STATE_SUCCEEDED) {
      all = false;
    } else if (group.kind != GroupKind::kGang || task.record.result().has_final_checkpoint()) {
      *since = std::min(*since, task.finished_at);
    }
  }
  if (group.kind == GroupKind::kSeparate) return all;
  return *since < absl::InfiniteFuture();
}

// Whether peers of a completed task may still run: they have a moment to complete too.
bool PeersRun(const JobEntry& job, const internal::StageRecord& stage) {
  for (const auto& [task_id, task] : job.tasks) {
    if (IsInRunningGroup(stage, task) && IsPlaced(task.record.state())) return true;
  }
  return false;
}

void FinishGroup(State* state, JobEntry* job, internal::StageRecord* stage) {
  for (auto& [task_id, task] : job->tasks) {
    if (!IsInRunningGroup(*stage, task)) continue;
    if (IsPlaced(task.record.state())) {
      WithdrawPlacement(state, job, &task, v1::TASK_STATE_CANCELLED);
    } else if (task.record.state() == v1::TASK_STATE_WAITING) {
      task.wait_reason.clear();
      state->MoveTask(job, &task, v1::TASK_STATE_CANCELLED).IgnoreError();
    }
  }
  CollectResults(job, stage);
  state->MarkJob(job);
}

}  // namespace

internal::StageRecord* RunningStage(JobEntry* job) {
  for (internal::StageRecord& stage : *job->record.mutable_stages()) {
    if (stage.state() == v1::STAGE_STATE_RUNNING) return &stage;
  }
  return nullptr;
}

const internal::StageRecord* RunningStage(const JobEntry& job) {
  for (const internal::StageRecord& stage : job.record.stages()) {
    if (stage.state() == v1::STAGE_STATE_RUNNING) return &stage;
  }
  return nullptr;
}

TaskGroup RunningGroup(const JobEntry& job, const internal::StageRecord& stage) {
  return GroupsOf(*job.spec, stage.stage())[static_cast<size_t>(stage.group())];
}

absl::StatusOr<std::string> SubmitJob(State* state, const std::string& request_id, const v1::JobSpec& spec) {
  if (request_id.empty() || request_id.size() > 256) {
    return absl::InvalidArgumentError(
        "request_id: must have 1 to 256 characters, so that a request sent twice makes one job");
  }
  if (auto known = state->FindRequest(request_id); known.ok()) return *known;
  RETURN_IF_ERROR(ValidateSpec(spec));
  JobEntry job;
  std::string job_id;
  do {
    job_id = absl::StrCat(spec.name(), "-", RandomHex(kJobIdHexDigits));
  } while (state->FindJob(job_id) != nullptr);
  job.record.set_job_id(job_id);
  job.record.set_state(v1::JOB_STATE_QUEUED);
  job.record.set_sequence(state->NextJobSequence());
  *job.record.mutable_submitted_at() = ToProto(state->Now());
  (*job.record.mutable_result()->mutable_versions())["retort"] = std::string(kVersion);
  for (const v1::Stage stage : StagesOf(spec)) {
    internal::StageRecord& record = *job.record.add_stages();
    record.set_stage(stage);
    record.set_state(v1::STAGE_STATE_PENDING);
  }
  job.spec = std::make_shared<const v1::JobSpec>(spec);
  state->AddJob(std::move(job));
  state->AddRequest(request_id, job_id);
  spdlog::info("job_submitted job_id={} stages={} priority={}", job_id, StagesOf(spec).size(), spec.priority());
  StartNextStage(state, state->FindJob(job_id));
  return job_id;
}

absl::StatusOr<v1::JobState> CancelJob(State* state, const std::string& request_id, const std::string& name) {
  ASSIGN_OR_RETURN(JobEntry * job, state->ResolveJob(name));
  if (!request_id.empty() && state->FindRequest(request_id).ok()) return job->record.state();
  if (HasEnded(job->record.state())) return job->record.state();
  job->record.set_message("cancelled");
  StopJob(state, job, v1::STAGE_STATE_CANCELLED);
  RETURN_IF_ERROR(state->MoveJob(job, v1::JOB_STATE_CANCELLED));
  state->AddRequest(request_id, job->record.job_id());
  return job->record.state();
}

absl::StatusOr<v1::JobState> ResumeJob(State* state, const std::string& request_id, const std::string& name) {
  ASSIGN_OR_RETURN(JobEntry * job, state->ResolveJob(name));
  if (!request_id.empty() && state->FindRequest(request_id).ok()) return job->record.state();
  if (job->record.state() == v1::JOB_STATE_SUCCEEDED) {
    return absl::FailedPreconditionError(
        absl::StrCat("job ", job->record.job_id(), " has succeeded; there is nothing to resume"));
  }
  if (!HasEnded(job->record.state())) return job->record.state();
  job->record.clear_message();
  RETURN_IF_ERROR(state->MoveJob(job, v1::JOB_STATE_QUEUED));
  for (internal::StageRecord& stage : *job->record.mutable_stages()) {
    if (stage.state() != v1::STAGE_STATE_FAILED && stage.state() != v1::STAGE_STATE_CANCELLED) continue;
    if (stage.has_started_at() && stage.has_finished_at()) {
      stage.set_earlier_seconds(stage.earlier_seconds() +
                                absl::ToDoubleSeconds(FromProto(stage.finished_at()) - FromProto(stage.started_at())));
    }
    stage.clear_started_at();
    stage.clear_finished_at();
    stage.clear_recent_errors();
    RETURN_IF_ERROR(state->MoveStage(job, &stage, v1::STAGE_STATE_PENDING));
    const TaskGroup group = RunningGroup(*job, stage);
    for (auto& [task_id, task] : job->tasks) {
      if (!IsInRunningGroup(stage, task)) continue;
      const v1::TaskState task_state = task.record.state();
      const bool again = task_state == v1::TASK_STATE_FAILED || task_state == v1::TASK_STATE_CANCELLED ||
                         (task_state == v1::TASK_STATE_SUCCEEDED && group.kind == GroupKind::kGang);
      if (!again) continue;
      task.record.set_failures_in_a_row(0);
      task.record.clear_not_before();
      RETURN_IF_ERROR(state->MoveTask(job, &task, v1::TASK_STATE_WAITING));
    }
  }
  state->AddRequest(request_id, job->record.job_id());
  StartNextStage(state, job);
  return job->record.state();
}

void FailJob(State* state, JobEntry* job, const std::string& message) {
  if (HasEnded(job->record.state())) return;
  job->record.set_message(message);
  StopJob(state, job, v1::STAGE_STATE_FAILED);
  state->MoveJob(job, v1::JOB_STATE_FAILED).IgnoreError();
}

void AdvanceJob(State* state, JobEntry* job) {
  while (internal::StageRecord* stage = RunningStage(job)) {
    const TaskGroup group = RunningGroup(*job, *stage);
    absl::Time done_since;
    if (!IsGroupDone(*job, *stage, group, &done_since)) {
      const bool any_left = std::any_of(job->tasks.begin(), job->tasks.end(), [&](const auto& entry) {
        return IsInRunningGroup(*stage, entry.second) && entry.second.record.state() != v1::TASK_STATE_SUCCEEDED;
      });
      if (!any_left) FailJob(state, job, "every rank has completed, but none gave the final checkpoint");
      return;
    }
    if (PeersRun(*job, *stage) && state->Now() < done_since + state->options().completion_grace) return;
    FinishGroup(state, job, stage);
    if (stage->group() + 1 < static_cast<int>(GroupsOf(*job->spec, stage->stage()).size())) {
      stage->set_group(stage->group() + 1);
      AddGroupTasks(state, job, *stage);
      return;
    }
    if (stage->stage() == v1::STAGE_TRAIN) state->gangs().erase(job->record.job_id());
    if (!state->MoveStage(job, stage, v1::STAGE_STATE_SUCCEEDED).ok()) return;
    StartNextStage(state, job);
    if (RunningStage(job) == nullptr) state->MoveJob(job, v1::JOB_STATE_SUCCEEDED).IgnoreError();
  }
}

absl::Time NextAdvance(const State& state, const JobEntry& job) {
  const internal::StageRecord* stage = RunningStage(job);
  if (stage == nullptr) return absl::InfiniteFuture();
  absl::Time done_since;
  const TaskGroup group = RunningGroup(job, *stage);
  if (group.kind == GroupKind::kSeparate || !IsGroupDone(job, *stage, group, &done_since))
    return absl::InfiniteFuture();
  return done_since + state.options().completion_grace;
}

void RefillBudget(State* state, JobEntry* job) {
  internal::StageRecord* stage = RunningStage(job);
  if (stage == nullptr) return;
  const int full = job->spec->max_infrastructure_failures();
  if (stage->failures_left() != full) {
    stage->set_failures_left(full);
    stage->clear_recent_errors();
    state->MarkJob(job);
  }
  for (auto& [task_id, task] : job->tasks) {
    if (!IsInRunningGroup(*stage, task) || task.record.failures_in_a_row() == 0) continue;
    task.record.set_failures_in_a_row(0);
    state->MarkTask(job, task);
  }
}

}  // namespace retort
