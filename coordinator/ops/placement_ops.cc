#include "coordinator/ops/placement_ops.h"

#include <algorithm>
#include <set>

#include "common/check.h"
#include "common/log.h"
#include "coordinator/ops/gang_ops.h"
#include "coordinator/ops/job_ops.h"
#include "coordinator/proto_time.h"
#include "coordinator/transitions.h"

namespace retort {
namespace {

constexpr int kMaxSharedThreads = 64;

WorkerView ViewOf(const WorkerEntry& worker) {
  WorkerView view;
  view.worker_id = worker.worker_id;
  view.schedulable = worker.state == v1::WORKER_STATE_READY && !worker.ends();
  int cpu_used = 0;
  std::set<int> gpus_used;
  for (const auto& [key, placement] : worker.placements) {
    if (placement.gpu_indices.empty()) {
      ++cpu_used;
    } else {
      gpus_used.insert(placement.gpu_indices.begin(), placement.gpu_indices.end());
    }
  }
  view.cpu_slots_free = std::max(0, worker.resources.cpu_slots() - cpu_used);
  for (const v1::Gpu& gpu : worker.resources.gpus()) {
    if (gpus_used.count(gpu.index()) == 0) view.gpus_free.push_back(gpu.index());
  }
  view.cpu_slots_total = worker.ends() ? 0 : worker.resources.cpu_slots();
  view.gpus_total = worker.ends() ? 0 : worker.resources.gpus_size();
  return view;
}

TaskView ViewOf(const internal::TaskRecord& record) {
  TaskView view;
  view.task_id = record.task_id();
  view.was_placed = record.epoch() != 0;
  if (record.has_not_before()) view.not_before = FromProto(record.not_before());
  if (record.failures_in_a_row() > 0) view.avoid_worker = record.worker_id();
  return view;
}

// Adds what waits in the job's running group. Tasks with work of their own need nothing of each other: each is a group
// by itself.
void AddRunningGroup(const State& state, const JobEntry& job, std::vector<GroupView>* views) {
  const internal::StageRecord* stage = RunningStage(job);
  if (stage == nullptr) return;
  const TaskGroup group = RunningGroup(job, *stage);
  GroupView view;
  view.job_id = job.record.job_id();
  view.priority = job.spec->priority();
  view.sequence = job.record.sequence();
  view.kind = group.kind;
  view.device = group.device;
  std::vector<const internal::TaskRecord*> waiting;
  for (const auto& [task_id, task] : job.tasks) {
    const internal::TaskRecord& record = task.record;
    if (record.stage() != stage->stage() || record.group() != stage->group()) continue;
    const bool on_gpu = record.gpu_indices_size() > 0;
    if (IsPlaced(record.state())) {
      ++view.placed;
      view.placed_on_gpu = on_gpu;
    } else if (record.state() == v1::TASK_STATE_SUCCEEDED) {
      // Work that is shared is done as soon as one has completed it.
      if (group.kind != GroupKind::kSeparate &&
          (group.kind == GroupKind::kReplicas || record.result().has_final_checkpoint())) {
        return;
      }
      ++view.finished;
    } else if (record.state() == v1::TASK_STATE_WAITING) {
      waiting.push_back(&record);
    }
    // What ran goes on where it ran, also when none of it is placed just now.
    if (record.epoch() != 0 && !view.placed_on_gpu.has_value()) view.placed_on_gpu = on_gpu;
  }
  if (waiting.empty()) return;
  std::sort(waiting.begin(), waiting.end(), [](const auto* a, const auto* b) { return a->replica() < b->replica(); });
  if (group.kind == GroupKind::kSeparate) {
    view.placed = view.finished = 0;
    view.min = 1;
    for (const internal::TaskRecord* record : waiting) {
      if (!group.devices.empty()) view.device = group.devices[static_cast<size_t>(record->replica())];
      view.placed_on_gpu.reset();
      if (record->epoch() != 0) view.placed_on_gpu = record->gpu_indices_size() > 0;
      view.waiting = {ViewOf(*record)};
      views->push_back(view);
    }
    return;
  }
  view.min = group.min;
  for (const internal::TaskRecord* record : waiting) view.waiting.push_back(ViewOf(*record));
  if (group.kind == GroupKind::kGang) {
    const auto gang = state.gangs().find(view.job_id);
    if (gang != state.gangs().end()) view.stable_since = gang->second.changed_at;
  }
  views->push_back(std::move(view));
}

int ThreadsFor(const TaskGroup& group, const WorkerEntry& worker, const std::string& job_id, int planned_here) {
  if (group.threads > 0) return group.threads;
  int peers = planned_here;
  for (const auto& [key, placement] : worker.placements) peers += placement.job_id == job_id && !placement.withdrawn;
  return std::clamp(worker.resources.cpu_cores() / std::max(1, peers), 1, kMaxSharedThreads);
}

}  // namespace

Snapshot TakeSnapshot(const State& state) {
  Snapshot snapshot;
  snapshot.version = state.schedule_version();
  for (const auto& [worker_id, worker] : state.workers()) {
    if (worker.state != v1::WORKER_STATE_LOST && !worker.incarnation_id.empty())
      snapshot.workers.push_back(ViewOf(worker));
  }
  for (const auto& [job_id, job] : state.jobs()) {
    if (HasEnded(job.record.state())) continue;
    AddRunningGroup(state, job, &snapshot.groups);
  }
  return snapshot;
}

bool CommitPlan(State* state, const Plan& plan) {
  if (plan.version != state->schedule_version()) return false;
  for (const auto& [task_id, reason] : plan.wait_reasons) {
    JobEntry* job = nullptr;
    TaskEntry* task = state->FindTask(task_id, &job);
    if (task == nullptr || task->wait_reason == reason) continue;
    task->wait_reason = reason;
    state->Touch(job);
  }
  std::map<std::pair<std::string, std::string>, int> planned;  // by job and worker
  for (const Placement& placement : plan.placements) ++planned[{JobIdOfTask(placement.task_id), placement.worker_id}];
  std::set<std::string> gangs_changed;
  for (const Placement& placement : plan.placements) {
    JobEntry* job = nullptr;
    TaskEntry* task = state->FindTask(placement.task_id, &job);
    WorkerEntry* worker = state->FindWorker(placement.worker_id);
    RETORT_CHECK(task != nullptr && worker != nullptr);
    internal::StageRecord* stage = RunningStage(job);
    RETORT_CHECK(stage != nullptr && stage->stage() == task->record.stage());
    const TaskGroup group = RunningGroup(*job, *stage);
    int& planned_here = planned[{job->record.job_id(), placement.worker_id}];
    const int threads = ThreadsFor(group, *worker, job->record.job_id(), planned_here);
    --planned_here;
    const uint64_t old_epoch = task->record.epoch();
    internal::TaskRecord& record = task->record;
    record.set_epoch(state->NextEpoch());
    record.set_worker_id(worker->worker_id);
    record.set_worker_incarnation(worker->incarnation_id);
    record.clear_gpu_indices();
    if (placement.gpu_index.has_value()) record.add_gpu_indices(*placement.gpu_index);
    record.set_threads(threads);
    record.set_process_gone(false);
    record.clear_not_before();
    RETORT_CHECK(record.epoch() > old_epoch);
    task->placed_at = state->Now();
    task->listed_at = task->heard_at = absl::InfinitePast();
    task->joined = false;
    task->progress.Clear();
    task->wait_reason.clear();
    PlacementEntry& entry = worker->placements[{record.task_id(), record.epoch()}];
    entry.job_id = job->record.job_id();
    entry.role = group.role;
    entry.gpu_indices.assign(record.gpu_indices().begin(), record.gpu_indices().end());
    entry.threads = threads;
    entry.missing_since = state->Now();
    state->TouchAssignments(worker);
    state->MoveTask(job, task, v1::TASK_STATE_ASSIGNED).IgnoreError();
    if (!stage->has_started_at()) {
      *stage->mutable_started_at() = ToProto(state->Now());
      state->MarkJob(job);
    }
    if (job->record.state() == v1::JOB_STATE_QUEUED) state->MoveJob(job, v1::JOB_STATE_RUNNING).IgnoreError();
    const auto gang = state->gangs().find(job->record.job_id());
    task->grows = (old_epoch == 0 || task->grows) && gang != state->gangs().end() && gang->second.formed.generation > 0;
    if (task->grows) gang->second.changed_at = state->Now();
    if (group.kind == GroupKind::kGang && !task->grows) gangs_changed.insert(job->record.job_id());
  }
  for (const std::string& job_id : gangs_changed) OnMembershipChange(state, state->FindJob(job_id));
  return true;
}

}  // namespace retort
