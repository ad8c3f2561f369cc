#include "coordinator/ops/worker_ops.h"

#include <string.h>

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status.h"
#include "coordinator/ops/job_ops.h"
#include "coordinator/ops/task_ops.h"
#include "coordinator/transitions.h"

namespace retort {
namespace {

constexpr int kMaxSlots = 4096;
constexpr size_t kMaxIdBytes = 200;
constexpr size_t kRetiredIncarnationsKept = 16;
constexpr absl::Duration kFailureWindow = absl::Minutes(10);
constexpr size_t kFailuresToDrain = 5;

using Key = std::pair<std::string, uint64_t>;

absl::Status CheckRequest(const v1::RegisterWorkerRequest& request) {
  if (request.worker_id().empty() || request.worker_id().size() > kMaxIdBytes)
    return absl::InvalidArgumentError("worker_id: 1 to 200 bytes");
  if (request.incarnation_id().empty() || request.incarnation_id().size() > kMaxIdBytes) {
    return absl::InvalidArgumentError("incarnation_id: 1 to 200 bytes");
  }
  const v1::WorkerResources& resources = request.resources();
  if (resources.cpu_slots() < 0 || resources.cpu_slots() > kMaxSlots || resources.gpus_size() > kMaxSlots) {
    return absl::InvalidArgumentError(absl::StrCat("resources: 0 to ", kMaxSlots, " slots of each kind"));
  }
  std::set<int> indices;
  for (const v1::Gpu& gpu : resources.gpus()) {
    if (gpu.index() < 0 || !indices.insert(gpu.index()).second)
      return absl::InvalidArgumentError("resources.gpus: indices must differ");
  }
  return absl::OkStatus();
}

std::set<Key> KeysOf(const google::protobuf::RepeatedPtrField<v1::RunningTask>& running) {
  std::set<Key> keys;
  for (const v1::RunningTask& task : running) keys.emplace(task.ref().task_id(), task.ref().epoch());
  return keys;
}

// The placement's task when it is still its current one; null otherwise.
TaskEntry* CurrentTask(State* state, const Key& key, JobEntry** job) {
  TaskEntry* task = state->FindTask(key.first, job);
  return task != nullptr && task->record.epoch() == key.second ? task : nullptr;
}

// The process is gone: its slot is free.
void FreeSlot(State* state, WorkerEntry* worker, const Key& key) {
  if (worker->placements.erase(key) == 0) return;
  state->TouchAssignments(worker);
  state->TouchSchedule();
  JobEntry* job = nullptr;
  if (TaskEntry* task = CurrentTask(state, key, &job)) {
    task->record.set_process_gone(true);
    state->MarkTask(job, *task);
  }
}

void Lose(State* state, const Key& key, const std::string& error, Blame blame = Blame::kJob) {
  JobEntry* job = nullptr;
  TaskEntry* task = CurrentTask(state, key, &job);
  if (task == nullptr || !IsPlaced(task->record.state())) return;
  LosePlacement(state, job, task, error, blame);
}

void LoseAll(State* state, WorkerEntry* worker, const std::vector<Key>& keys, const std::string& error) {
  for (const Key& key : keys) {
    Lose(state, key, error);
    FreeSlot(state, worker, key);
  }
}

// What runs there but was given up meanwhile holds its slot until the daemon has killed it.
void AddFenced(State* state, WorkerEntry* worker, const std::set<Key>& running) {
  for (const Key& key : running) {
    if (worker->placements.count(key) > 0) continue;
    PlacementEntry& placement = worker->placements[key];
    placement.job_id = JobIdOfTask(key.first);
    placement.withdrawn = true;
    placement.withdrawn_at = state->Now();
  }
  state->TouchAssignments(worker);
}

// Compares what the daemon says it runs with what it should.
void TakeRunning(State* state, WorkerEntry* worker, const std::set<Key>& running) {
  const absl::Time now = state->Now();
  for (auto& [key, placement] : worker->placements) {
    if (running.count(key) == 0) {
      placement.missing_since = std::min(placement.missing_since, now);
      continue;
    }
    placement.missing_since = absl::InfiniteFuture();
    JobEntry* job = nullptr;
    if (TaskEntry* task = CurrentTask(state, key, &job)) MarkRunning(state, job, task);
  }
}

void SetState(State* state, WorkerEntry* worker, v1::WorkerState to) {
  if (worker->state == to) return;
  const bool loud = to == v1::WORKER_STATE_LOST || worker->state == v1::WORKER_STATE_LOST;
  worker->state = to;
  state->TouchSchedule();
  if (loud) {
    spdlog::warn("worker_state worker_id={} to={}", worker->worker_id, v1::WorkerState_Name(to));
  } else {
    spdlog::debug("worker_state worker_id={} to={}", worker->worker_id, v1::WorkerState_Name(to));
  }
}

void NoteStopping(State* state, WorkerEntry* worker) {
  if (std::exchange(worker->stopping, true)) return;
  state->TouchSchedule();
  spdlog::info("worker_stopping worker_id={}", worker->worker_id);
}

// When a process that its worker lists is taken to hang as a whole. (A rank whose process speaks but that does not step
// is its gang's to notice.)
absl::Time SilentAt(const CoordinatorOptions& options, const TaskEntry& task) {
  if (task.heard_at == absl::InfinitePast()) return task.listed_at + options.first_word_timeout;
  return task.heard_at + options.silent_task_after;
}

// Gives up placements whose process is not there, not there any more, or silent. Returns when one could be next.
absl::Time CheckPlacements(State* state, WorkerEntry* worker) {
  const CoordinatorOptions& options = state->options();
  const absl::Time now = state->Now();
  absl::Time wake_at = absl::InfiniteFuture();
  std::vector<Key> gone;
  std::vector<Key> expired;
  std::vector<Key> silent;
  for (auto& [key, placement] : worker->placements) {
    JobEntry* job = nullptr;
    TaskEntry* task = CurrentTask(state, key, &job);
    if (task != nullptr && task->record.state() == v1::TASK_STATE_SUCCEEDED && !placement.withdrawn) {
      const absl::Time until = task->finished_at + options.exit_grace;
      if (until <= now) {
        placement.withdrawn = true;
        placement.withdrawn_at = now;
        state->TouchAssignments(worker);
      } else {
        wake_at = std::min(wake_at, until);
      }
    }
    if (placement.missing_since == absl::InfiniteFuture()) {
      if (worker->state != v1::WORKER_STATE_READY || placement.withdrawn) continue;
      if (task == nullptr || task->record.state() != v1::TASK_STATE_RUNNING) continue;
      const absl::Time silent_at = SilentAt(options, *task);
      if (silent_at <= now) {
        silent.push_back(key);
      } else {
        wake_at = std::min(wake_at, silent_at);
      }
      continue;
    }
    absl::Duration patience = options.missing_after;
    absl::Time since = placement.missing_since;
    if (placement.withdrawn) {
      since = std::max(since, placement.withdrawn_at);
    } else if (task != nullptr && task->record.state() == v1::TASK_STATE_ASSIGNED) {
      patience = options.start_timeout;
      since = std::max(since, task->placed_at);
    }
    if (since + patience > now) {
      wake_at = std::min(wake_at, since + patience);
    } else if (placement.withdrawn) {
      gone.push_back(key);
    } else {
      expired.push_back(key);
    }
  }
  for (const Key& key : gone) FreeSlot(state, worker, key);
  for (const Key& key : expired) {
    Lose(state, key, absl::StrCat("worker ", worker->worker_id, " does not run it (any more)"));
    FreeSlot(state, worker, key);
  }
  for (const Key& key : silent) {
    JobEntry* job = nullptr;
    const TaskEntry* task = CurrentTask(state, key, &job);
    const absl::Duration silence = now - std::max(task->listed_at, task->heard_at);
    // Its slot is free when its worker has killed it.
    Lose(state, key, absl::StrCat("its process has not answered for ", absl::ToInt64Seconds(silence), "s"));
    NoteFailure(state, worker->worker_id);
  }
  return wake_at;
}

}  // namespace

void NoteFailure(State* state, const std::string& worker_id) {
  WorkerEntry* worker = state->FindWorker(worker_id);
  if (worker == nullptr) return;
  const absl::Time now = state->Now();
  worker->failures.push_back(now);
  while (!worker->failures.empty() && worker->failures.front() + kFailureWindow < now) worker->failures.pop_front();
  if (worker->draining || worker->failures.size() < kFailuresToDrain) return;
  bool cpus_elsewhere = worker->resources.cpu_slots() == 0;
  bool gpus_elsewhere = worker->resources.gpus_size() == 0;
  bool others_do_better = false;
  for (const auto& [id, other] : state->workers()) {
    if (&other == worker || other.ends() || other.state != v1::WORKER_STATE_READY) continue;
    if (2 * other.failures.size() > worker->failures.size()) return;  // the fault is not this worker's alone
    others_do_better = true;
    cpus_elsewhere = cpus_elsewhere || other.resources.cpu_slots() > 0;
    gpus_elsewhere = gpus_elsewhere || other.resources.gpus_size() > 0;
  }
  if (!others_do_better || !cpus_elsewhere || !gpus_elsewhere) return;
  worker->draining = true;
  state->TouchSchedule();
  spdlog::warn("worker_draining worker_id={} failures={} window=10m", worker->worker_id, worker->failures.size());
}

absl::StatusOr<WorkerEntry*> CurrentWorker(State* state, const std::string& worker_id,
                                           const std::string& incarnation_id) {
  WorkerEntry* worker = state->FindWorker(worker_id);
  if (worker == nullptr || worker->incarnation_id.empty()) {
    return absl::NotFoundError(absl::StrCat("worker ", worker_id, " is not known: register it again"));
  }
  if (worker->incarnation_id == incarnation_id) return worker;
  const auto& retired = worker->retired_incarnations;
  if (std::find(retired.begin(), retired.end(), incarnation_id) != retired.end()) {
    return absl::AbortedError(
        absl::StrCat("another daemon has registered as worker ", worker_id, "; this one must stop"));
  }
  return absl::NotFoundError(
      absl::StrCat("this incarnation of worker ", worker_id, " is not known: register it again"));
}

absl::Status RegisterWorker(State* state, const v1::RegisterWorkerRequest& request) {
  RETURN_IF_ERROR(CheckRequest(request));
  WorkerEntry& worker = state->workers()[request.worker_id()];
  const auto& retired = worker.retired_incarnations;
  if (std::find(retired.begin(), retired.end(), request.incarnation_id()) != retired.end()) {
    return absl::AbortedError(
        absl::StrCat("another daemon has registered as worker ", request.worker_id(), "; this one must stop"));
  }
  const absl::Time now = state->Now();
  if (worker.incarnation_id != request.incarnation_id()) worker.stopping = false;
  if (!worker.incarnation_id.empty() && worker.incarnation_id != request.incarnation_id()) {
    worker.retired_incarnations.push_back(worker.incarnation_id);
    if (worker.retired_incarnations.size() > kRetiredIncarnationsKept) worker.retired_incarnations.pop_front();
  }
  worker.worker_id = request.worker_id();
  worker.incarnation_id = request.incarnation_id();
  worker.hostname = request.hostname();
  worker.resources = request.resources();
  worker.last_heartbeat = now;
  SetState(state, &worker, v1::WORKER_STATE_READY);
  if (request.stopping()) NoteStopping(state, &worker);

  const std::set<Key> running = KeysOf(request.running());
  std::vector<Key> dead;
  for (const auto& [key, placement] : worker.placements) {
    if (running.count(key) > 0) continue;
    JobEntry* job = nullptr;
    const TaskEntry* task = CurrentTask(state, key, &job);
    // An earlier daemon's processes ended with it; its own exits this daemon will still report.
    if (placement.withdrawn || task == nullptr || task->record.worker_incarnation() != request.incarnation_id())
      dead.push_back(key);
  }
  LoseAll(state, &worker, dead, absl::StrCat("worker ", request.worker_id(), " was restarted"));
  AddFenced(state, &worker, running);
  TakeRunning(state, &worker, running);
  state->TouchAssignments(&worker);
  state->TouchSchedule();
  spdlog::info("worker_registered worker_id={} hostname={} cpu_slots={} gpus={} running={} version={}",
               worker.worker_id, worker.hostname, worker.resources.cpu_slots(), worker.resources.gpus_size(),
               request.running_size(), request.version());
  return absl::OkStatus();
}

absl::Status Heartbeat(State* state, const v1::HeartbeatRequest& request) {
  ASSIGN_OR_RETURN(WorkerEntry * worker, CurrentWorker(state, request.worker_id(), request.incarnation_id()));
  const std::set<Key> running = KeysOf(request.running());
  if (worker->state == v1::WORKER_STATE_LOST) AddFenced(state, worker, running);
  worker->last_heartbeat = state->Now();
  SetState(state, worker, v1::WORKER_STATE_READY);
  if (request.stopping()) NoteStopping(state, worker);
  TakeRunning(state, worker, running);
  return absl::OkStatus();
}

absl::Status ReportTaskExit(State* state, const v1::ReportTaskExitRequest& request) {
  ASSIGN_OR_RETURN(WorkerEntry * worker, CurrentWorker(state, request.worker_id(), request.incarnation_id()));
  const v1::TaskExit& exit = request.exit();
  const Key key{exit.ref().task_id(), exit.ref().epoch()};
  const auto placement = worker->placements.find(key);
  if (placement == worker->placements.end()) return absl::OkStatus();
  const bool expected = placement->second.withdrawn;
  FreeSlot(state, worker, key);
  JobEntry* job = nullptr;
  const TaskEntry* task = CurrentTask(state, key, &job);
  if (expected || task == nullptr || !IsPlaced(task->record.state())) return absl::OkStatus();
  // A worker that lost its lease or was told to stop ended it. (One that exceeded a limit was not killed for that.)
  Lose(state, key, DescribeExit(exit), exit.killed_by_worker() ? Blame::kNobody : Blame::kJob);
  if (!exit.killed_by_worker()) NoteFailure(state, worker->worker_id);
  return absl::OkStatus();
}

v1::WatchAssignmentsResponse AssignmentsOf(const WorkerEntry& worker) {
  v1::WatchAssignmentsResponse response;
  response.set_revision(static_cast<int64_t>(worker.assignments_revision));
  for (const auto& [key, placement] : worker.placements) {
    if (placement.withdrawn) continue;
    v1::Assignment& assignment = *response.add_assignments();
    assignment.mutable_ref()->set_task_id(key.first);
    assignment.mutable_ref()->set_epoch(key.second);
    assignment.set_role(placement.role);
    for (const int index : placement.gpu_indices) assignment.add_gpu_indices(index);
    assignment.set_threads(placement.threads);
    assignment.set_job_id(placement.job_id);
  }
  return response;
}

absl::Time CheckWorkers(State* state) {
  const CoordinatorOptions& options = state->options();
  const absl::Time now = state->Now();
  absl::Time wake_at = absl::InfiniteFuture();
  std::vector<std::string> forgotten;
  for (auto& [worker_id, worker] : state->workers()) {
    const absl::Duration silence = now - worker.last_heartbeat;
    if (worker.draining && !worker.failures.empty() && worker.failures.back() + kFailureWindow < now) {
      worker.draining = false;
      worker.failures.clear();
      state->TouchSchedule();
    }
    if (silence >= options.lost_after) {
      if (worker.state != v1::WORKER_STATE_LOST) {
        SetState(state, &worker, v1::WORKER_STATE_LOST);
        std::vector<Key> keys;
        for (const auto& [key, placement] : worker.placements) keys.push_back(key);
        LoseAll(state, &worker, keys,
                absl::StrCat("worker ", worker_id, " has been silent for ", absl::FormatDuration(options.lost_after)));
      }
      if (silence > kFailureWindow) forgotten.push_back(worker_id);
      continue;
    }
    if (silence >= options.suspect_after) {
      SetState(state, &worker, v1::WORKER_STATE_SUSPECT);
      wake_at = std::min(wake_at, worker.last_heartbeat + options.lost_after);
    } else {
      wake_at = std::min(wake_at, worker.last_heartbeat + options.suspect_after);
    }
    wake_at = std::min(wake_at, CheckPlacements(state, &worker));
  }
  for (const std::string& worker_id : forgotten) state->workers().erase(worker_id);
  return wake_at;
}

void ForgiveSilence(State* state) {
  for (auto& [worker_id, worker] : state->workers()) {
    if (worker.state != v1::WORKER_STATE_LOST) worker.last_heartbeat = state->Now();
  }
  for (auto& [job_id, job] : state->jobs()) {
    if (HasEnded(job.record.state())) continue;
    for (auto& [task_id, task] : job.tasks) {
      if (IsPlaced(task.record.state())) task.heard_at = state->Now();
    }
  }
}

std::string DescribeExit(const v1::TaskExit& exit) {
  std::string text;
  if (exit.signal() != 0) {
    const char* name = sigabbrev_np(exit.signal());
    text = absl::StrCat("killed by signal ", exit.signal(), name == nullptr ? "" : absl::StrCat(" (", name, ")"));
    if (exit.killed_by_worker()) absl::StrAppend(&text, " of its worker");
  } else if (exit.exit_code() == 0) {
    text = "exited without having completed its task";
  } else if (exit.exit_code() == 3) {
    text = "ended because it was told that its placement is over";
  } else {
    text = absl::StrCat("exited with code ", exit.exit_code());
  }
  if (!exit.message().empty()) absl::StrAppend(&text, ": ", exit.message());
  return text;
}

}  // namespace retort
