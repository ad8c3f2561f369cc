#include "coordinator/core.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/status.h"
#include "coordinator/ops/gang_ops.h"
#include "coordinator/ops/job_ops.h"
#include "coordinator/ops/task_ops.h"
#include "coordinator/ops/worker_ops.h"
#include "coordinator/transitions.h"
#include "coordinator/view.h"

namespace retort {
namespace {

constexpr int kDefaultListLimit = 100;
constexpr int kMaxListLimit = 10'000;
// How often a waiting RPC looks whether its caller is still there.
constexpr absl::Duration kCancelCheck = absl::Milliseconds(500);

}  // namespace

Core::Core(const CoordinatorOptions& options, const Clock* clock, StateLog* log, CoreHooks hooks)
    : options_(options), clock_(clock), log_(log), hooks_(std::move(hooks)), state_(options, clock) {}

absl::StatusOr<std::unique_ptr<Core>> Core::Create(const CoordinatorOptions& options, const Clock* clock, StateLog* log,
                                                   CoreHooks hooks) {
  std::unique_ptr<Core> core(new Core(options, clock, log, std::move(hooks)));
  uint64_t position = 0;
  {
    absl::MutexLock lock(&core->mu_);
    RETURN_IF_ERROR(core->state_.Load(*log));
    core->coordinator_id_ = core->state_.coordinator_id();
    core->state_.TouchSchedule();
    position = core->Queue();
    size_t open = 0;
    for (const auto& [job_id, job] : core->state_.jobs()) open += !HasEnded(job.record.state());
    spdlog::info("state_loaded coordinator_id={} jobs={} open_jobs={}", core->coordinator_id_,
                 core->state_.jobs().size(), open);
  }
  RETURN_IF_ERROR(log->WaitDurable(position));
  return core;
}

Core::~Core() { Stop(); }

uint64_t Core::Queue() {
  std::vector<RecordChange> changes = state_.TakeChanges();
  ++news_count_;
  news_.SignalAll();
  if (state_.schedule_version() != placed_version_) duties_.Signal();
  return changes.empty() ? log_->last_position() : log_->Append(std::move(changes));
}

bool Core::WaitForNews(absl::Time deadline, const Cancelled& cancelled) {
  const uint64_t seen = news_count_;
  while (news_count_ == seen) {
    const absl::Time now = absl::Now();
    if (stopping_ || now >= deadline || cancelled()) return false;
    news_.WaitWithDeadline(&mu_, std::min(deadline, now + kCancelCheck));
  }
  return !stopping_;
}

absl::Status Core::NoNews() const {
  if (stopping_) return absl::UnavailableError("the coordinator is stopping; try again");
  return absl::DeadlineExceededError("nothing has changed yet; ask again");
}

// Runs `operation` (an expression over state_) under the lock, then waits until what it saw and did is durable.
#define RETORT_LOCKED(result, operation)               \
  uint64_t position = 0;                               \
  auto result = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { \
    absl::MutexLock lock(&mu_);                        \
    auto inner = (operation);                          \
    position = Queue();                                \
    return inner;                                      \
  }();                                                 \
  RETURN_IF_ERROR(log_->WaitDurable(position))

absl::StatusOr<std::string> Core::SubmitJob(const std::string& request_id, const v1::JobSpec& spec) {
  RETORT_LOCKED(result, retort::SubmitJob(&state_, request_id, spec));
  return result;
}

absl::StatusOr<v1::JobState> Core::CancelJob(const std::string& request_id, const std::string& name) {
  RETORT_LOCKED(result, retort::CancelJob(&state_, request_id, name));
  return result;
}

absl::StatusOr<v1::JobState> Core::ResumeJob(const std::string& request_id, const std::string& name) {
  RETORT_LOCKED(result, retort::ResumeJob(&state_, request_id, name));
  return result;
}

absl::StatusOr<v1::GetTaskResponse> Core::GetTask(const v1::TaskRef& ref) {
  RETORT_LOCKED(result, retort::GetTask(&state_, ref));
  return result;
}

absl::StatusOr<uint64_t> Core::ReportProgress(const v1::ReportProgressRequest& request) {
  RETORT_LOCKED(result, retort::ReportProgress(&state_, request));
  return result;
}

absl::Status Core::RegisterCheckpoint(const v1::TaskRef& ref, const v1::Checkpoint& checkpoint, int64_t size_bytes) {
  RETORT_LOCKED(result, retort::RegisterCheckpoint(&state_, ref, checkpoint, size_bytes));
  return result;
}

absl::Status Core::CompleteTask(const v1::TaskRef& ref, const v1::TaskResult& result_given) {
  RETORT_LOCKED(result, retort::CompleteTask(&state_, ref, result_given));
  return result;
}

absl::Status Core::FailTask(const v1::TaskRef& ref, v1::FailureCause cause, const std::string& message,
                            const std::string& damaged_artifact_id) {
  RETORT_LOCKED(result, retort::FailTask(&state_, ref, cause, message, damaged_artifact_id));
  return result;
}

absl::Status Core::RegisterWorker(const v1::RegisterWorkerRequest& request) {
  RETORT_LOCKED(result, retort::RegisterWorker(&state_, request));
  return result;
}

absl::Status Core::Heartbeat(const v1::HeartbeatRequest& request) {
  absl::MutexLock lock(&mu_);
  const uint64_t version = state_.schedule_version();
  const absl::Status status = retort::Heartbeat(&state_, request);
  // A heartbeat that tells nothing new wakes nobody and rests on nothing.
  if (state_.schedule_version() != version) Queue();
  return status;
}

absl::Status Core::ReportTaskExit(const v1::ReportTaskExitRequest& request) {
  RETORT_LOCKED(result, retort::ReportTaskExit(&state_, request));
  return result;
}

absl::Status Core::Check(const v1::TaskRef& ref) {
  absl::MutexLock lock(&mu_);
  JobEntry* job = nullptr;
  TaskEntry* task = nullptr;
  return state_.CheckFence(ref, &job, &task);
}

absl::Status Core::CheckTaskLog(const v1::TaskRef& ref) {
  absl::MutexLock lock(&mu_);
  JobEntry* job = nullptr;
  const TaskEntry* task = state_.FindTask(ref.task_id(), &job);
  if (task == nullptr || ref.epoch() == 0 || ref.epoch() > task->record.epoch()) {
    return absl::NotFoundError(absl::StrCat("there was no placement ", ref.epoch(), " of a task ", ref.task_id()));
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::Job> Core::GetJob(const std::string& name) {
  RETORT_LOCKED(result, [&]() -> absl::StatusOr<v1::Job> {
    ASSIGN_OR_RETURN(const JobEntry* job, state_.ResolveJob(name));
    return ViewJob(state_, *job);
  }());
  if (result.ok()) CountTraces(&*result);
  return result;
}

void Core::CountTraces(v1::Job* job) const {
  for (v1::StageStatus& stage : *job->mutable_stages()) {
    const bool generates = stage.stage() == v1::STAGE_GENERATE && stage.state() != v1::STAGE_STATE_PENDING;
    const bool evaluates = stage.stage() == v1::STAGE_EVALUATE && stage.state() == v1::STAGE_STATE_RUNNING &&
                           stage.progress().unit() == "traces";
    if (!generates && !evaluates) continue;
    int64_t done = 0;
    int64_t total = 0;
    v1::Outcomes outcomes;
    bool known = false;
    bool sealed = true;
    for (const std::string& sample_set_id : SampleSetIdsOf(job->spec(), job->job_id(), stage.stage())) {
      const auto info = hooks_.sample_set_info(sample_set_id);
      sealed = sealed && info.ok() && info->sealed();
      if (!info.ok()) continue;
      known = true;
      done += info->trace_count();
      total += info->prompt_count() * info->n();
      for (const auto& [cause, count] : info->outcomes().counts()) (*outcomes.mutable_counts())[cause] += count;
    }
    if (!known) continue;
    if (generates) *stage.mutable_outcomes() = outcomes;
    stage.mutable_progress()->set_unit("traces");
    stage.mutable_progress()->set_done(done);
    if (sealed) stage.mutable_progress()->set_total(total);
  }
}

absl::StatusOr<std::vector<v1::Job>> Core::ListJobs(int limit) {
  if (limit <= 0) limit = kDefaultListLimit;
  RETORT_LOCKED(result, [&] {
    std::vector<const JobEntry*> jobs;
    for (const auto& [job_id, job] : state_.jobs()) jobs.push_back(&job);
    std::sort(jobs.begin(), jobs.end(),
              [](const JobEntry* a, const JobEntry* b) { return a->record.sequence() > b->record.sequence(); });
    jobs.resize(std::min(jobs.size(), static_cast<size_t>(std::min(limit, kMaxListLimit))));
    std::vector<v1::Job> views;
    for (const JobEntry* job : jobs) views.push_back(SummariseJob(state_, *job));
    return views;
  }());
  return result;
}

absl::StatusOr<std::vector<v1::WorkerStatus>> Core::ListWorkers() {
  absl::MutexLock lock(&mu_);
  std::vector<v1::WorkerStatus> views;
  for (const auto& [worker_id, worker] : state_.workers()) views.push_back(ViewWorker(state_, worker));
  return views;
}

absl::StatusOr<v1::WatchAssignmentsResponse> Core::WaitAssignments(const v1::WatchAssignmentsRequest& request,
                                                                   int64_t seen, absl::Duration timeout,
                                                                   const Cancelled& cancelled) {
  const absl::Time deadline = absl::Now() + timeout;
  v1::WatchAssignmentsResponse response;
  uint64_t position = 0;
  {
    absl::MutexLock lock(&mu_);
    while (true) {
      ASSIGN_OR_RETURN(const WorkerEntry* worker,
                       CurrentWorker(&state_, request.worker_id(), request.incarnation_id()));
      if (static_cast<int64_t>(worker->assignments_revision) > seen) {
        response = AssignmentsOf(*worker);
        position = log_->last_position();
        break;
      }
      if (!WaitForNews(deadline, cancelled)) return NoNews();
    }
  }
  RETURN_IF_ERROR(log_->WaitDurable(position));
  return response;
}

absl::StatusOr<Core::JobView> Core::WaitJob(const std::string& name, uint64_t seen, absl::Duration timeout,
                                            const Cancelled& cancelled) {
  const absl::Time deadline = absl::Now() + timeout;
  JobView view;
  uint64_t position = 0;
  {
    absl::MutexLock lock(&mu_);
    while (true) {
      ASSIGN_OR_RETURN(const JobEntry* job, state_.ResolveJob(name));
      if (job->revision > seen) {
        view = {ViewJob(state_, *job), job->revision};
        position = log_->last_position();
        break;
      }
      if (!WaitForNews(deadline, cancelled)) return NoNews();
    }
  }
  RETURN_IF_ERROR(log_->WaitDurable(position));
  CountTraces(&view.job);
  return view;
}

absl::StatusOr<v1::JoinGangResponse> Core::JoinGang(const v1::JoinGangRequest& request, absl::Duration timeout,
                                                    const Cancelled& cancelled) {
  const absl::Time deadline = absl::Now() + timeout;
  v1::JoinGangResponse response;
  uint64_t position = 0;
  {
    absl::MutexLock lock(&mu_);
    const absl::Status joined = retort::JoinGang(&state_, request);
    Queue();
    duties_.Signal();
    RETURN_IF_ERROR(joined);
    while (true) {
      ASSIGN_OR_RETURN(auto answer, GangAnswer(&state_, request));
      if (answer.has_value()) {
        response = std::move(*answer);
        position = log_->last_position();
        break;
      }
      if (!WaitForNews(deadline, cancelled)) return NoNews();
    }
  }
  RETURN_IF_ERROR(log_->WaitDurable(position));
  return response;
}

}  // namespace retort
