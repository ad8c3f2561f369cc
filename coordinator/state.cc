#include "coordinator/state.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/check.h"
#include "common/id.h"
#include "common/log.h"
#include "common/status.h"
#include "coordinator/proto_time.h"
#include "coordinator/transitions.h"

namespace retort {
namespace {

// Keys of the state log. A job id holds no '/'.
constexpr char kCoordinatorKey[] = "coordinator";
constexpr char kJobPrefix[] = "job/";
constexpr char kLossPrefix[] = "loss/";
constexpr char kRequestPrefix[] = "request/";
constexpr char kSpecPrefix[] = "spec/";
constexpr char kTaskPrefix[] = "task/";

constexpr uint64_t kEpochsPerReservation = 1000;
constexpr absl::Duration kRequestsKeptFor = absl::Hours(7 * 24);

template <typename Record>
absl::Status Parse(absl::string_view key, absl::string_view value, Record* record) {
  if (record->ParseFromArray(value.data(), static_cast<int>(value.size()))) return absl::OkStatus();
  return absl::DataLossError(
      absl::StrCat("state log: record ", key, " cannot be read; restore the state folder from a backup"));
}

std::string TaskKey(const std::string& job_id, const std::string& task_id) {
  return absl::StrCat(kTaskPrefix, job_id, "/", task_id);
}

}  // namespace

absl::Status State::Load(const StateLog& log) {
  const absl::Time now = Now();
  std::vector<std::string> old_requests;
  RETURN_IF_ERROR(log.ForEach([&](absl::string_view key, absl::string_view value) -> absl::Status {
    absl::string_view rest = key;
    if (key == kCoordinatorKey) return Parse(key, value, &coordinator_);
    if (absl::ConsumePrefix(&rest, kJobPrefix)) return Parse(key, value, &jobs_[std::string(rest)].record);
    if (absl::ConsumePrefix(&rest, kSpecPrefix)) {
      auto spec = std::make_shared<v1::JobSpec>();
      RETURN_IF_ERROR(Parse(key, value, spec.get()));
      jobs_[std::string(rest)].spec = std::move(spec);
      return absl::OkStatus();
    }
    if (absl::ConsumePrefix(&rest, kLossPrefix)) {
      internal::LossRecord record;
      RETURN_IF_ERROR(Parse(key, value, &record));
      for (const v1::LossPoint& point : record.losses()) jobs_[std::string(rest)].losses[point.step()] = point;
      return absl::OkStatus();
    }
    if (absl::ConsumePrefix(&rest, kRequestPrefix)) {
      internal::RequestRecord record;
      RETURN_IF_ERROR(Parse(key, value, &record));
      if (FromProto(record.received_at()) + kRequestsKeptFor < now) {
        old_requests.emplace_back(key);
      } else {
        requests_[std::string(rest)] = std::move(record);
      }
      return absl::OkStatus();
    }
    if (absl::ConsumePrefix(&rest, kTaskPrefix)) {
      TaskEntry task;
      RETURN_IF_ERROR(Parse(key, value, &task.record));
      const std::string task_id = task.record.task_id();
      jobs_[JobIdOfTask(task_id)].tasks[task_id] = std::move(task);
      return absl::OkStatus();
    }
    return absl::DataLossError(
        absl::StrCat("state log: record ", key, " is of no known kind; a newer version may have written it"));
  }));
  for (const std::string& key : old_requests) changes_.push_back({key, "", true});

  for (auto& [job_id, job] : jobs_) {
    if (job.spec == nullptr || job.record.job_id() != job_id) {
      return absl::DataLossError(
          absl::StrCat("state log: job ", job_id, " is incomplete; restore the state folder from a backup"));
    }
    for (auto& [task_id, task] : job.tasks) {
      const internal::TaskRecord& record = task.record;
      task.placed_at = now;
      task.finished_at = now;  // its peers' moment to complete begins anew
      // Nobody could be heard while this process was away.
      task.listed_at = now;
      task.heard_at = now;
      if (record.epoch() == 0 || record.process_gone()) continue;
      WorkerEntry& worker = workers_[record.worker_id()];
      worker.worker_id = record.worker_id();
      worker.last_heartbeat = now;
      PlacementEntry& placement = worker.placements[{task_id, record.epoch()}];
      placement.job_id = job_id;
      placement.role = GroupsOf(*job.spec, record.stage())[static_cast<size_t>(record.group())].role;
      placement.gpu_indices.assign(record.gpu_indices().begin(), record.gpu_indices().end());
      placement.threads = record.threads();
      placement.withdrawn = !IsPlaced(record.state());
      placement.withdrawn_at = now;
    }
  }
  last_epoch_ = coordinator_.epochs_reserved();
  // Revisions only have to rise for one worker's stream, across restarts.
  revision_counter_ = static_cast<uint64_t>(std::max<int64_t>(0, absl::ToUnixMicros(now)));
  for (auto& [id, worker] : workers_) TouchAssignments(&worker);
  if (coordinator_.coordinator_id().empty()) {
    coordinator_.set_coordinator_id(RandomHex(16));
    coordinator_marked_ = true;
  }
  return absl::OkStatus();
}

JobEntry* State::FindJob(const std::string& job_id) {
  const auto found = jobs_.find(job_id);
  return found == jobs_.end() ? nullptr : &found->second;
}

absl::StatusOr<JobEntry*> State::ResolveJob(const std::string& name) {
  if (name.empty()) return absl::InvalidArgumentError("no job was named");
  if (JobEntry* job = FindJob(name)) return job;
  JobEntry* newest = nullptr;
  std::vector<JobEntry*> with_prefix;
  for (auto& [job_id, job] : jobs_) {
    if (job.spec->name() == name && (newest == nullptr || job.record.sequence() > newest->record.sequence()))
      newest = &job;
    if (absl::StartsWith(job_id, name)) with_prefix.push_back(&job);
  }
  if (newest != nullptr) return newest;
  if (with_prefix.size() == 1) return with_prefix.front();
  if (with_prefix.empty())
    return absl::NotFoundError(absl::StrCat("there is no job \"", name, "\"; distctl list shows them"));
  return absl::InvalidArgumentError(absl::StrCat("\"", name, "\" is the beginning of ", with_prefix.size(),
                                                 " job ids, ", with_prefix[0]->record.job_id(), " and ",
                                                 with_prefix[1]->record.job_id(), " among them; give more of it"));
}

TaskEntry* State::FindTask(const std::string& task_id, JobEntry** job) {
  *job = FindJob(JobIdOfTask(task_id));
  if (*job == nullptr) return nullptr;
  const auto found = (*job)->tasks.find(task_id);
  return found == (*job)->tasks.end() ? nullptr : &found->second;
}

WorkerEntry* State::FindWorker(const std::string& worker_id) {
  const auto found = workers_.find(worker_id);
  return found == workers_.end() ? nullptr : &found->second;
}

absl::Status State::CheckFence(const v1::TaskRef& ref, JobEntry** job, TaskEntry** task) {
  *task = FindTask(ref.task_id(), job);
  if (*task == nullptr) return absl::FailedPreconditionError(absl::StrCat("fenced: there is no task ", ref.task_id()));
  const internal::TaskRecord& record = (*task)->record;
  if (record.epoch() != ref.epoch() || !IsPlaced(record.state())) {
    return absl::FailedPreconditionError(absl::StrCat("fenced: ", ref.task_id(), " is at epoch ", record.epoch(),
                                                      " and ", ShortName(record.state()), ", the request is of epoch ",
                                                      ref.epoch()));
  }
  return absl::OkStatus();
}

uint64_t State::NextEpoch() {
  if (last_epoch_ >= coordinator_.epochs_reserved()) {
    coordinator_.set_epochs_reserved(last_epoch_ + kEpochsPerReservation);
    coordinator_marked_ = true;
  }
  return ++last_epoch_;
}

uint64_t State::NextJobSequence() {
  coordinator_.set_jobs_submitted(coordinator_.jobs_submitted() + 1);
  coordinator_marked_ = true;
  return coordinator_.jobs_submitted();
}

void State::AddJob(JobEntry job) {
  const std::string job_id = job.record.job_id();
  RETORT_CHECK(jobs_.find(job_id) == jobs_.end());
  changes_.push_back({absl::StrCat(kSpecPrefix, job_id), job.spec->SerializeAsString(), false});
  marked_jobs_.insert(job_id);
  jobs_[job_id] = std::move(job);
}

absl::StatusOr<std::string> State::FindRequest(const std::string& request_id) const {
  const auto found = requests_.find(request_id);
  if (found == requests_.end()) return absl::NotFoundError("a new request");
  return found->second.job_id();
}

void State::AddRequest(const std::string& request_id, const std::string& job_id) {
  if (request_id.empty()) return;
  internal::RequestRecord& record = requests_[request_id];
  record.set_job_id(job_id);
  *record.mutable_received_at() = ToProto(Now());
  changes_.push_back({absl::StrCat(kRequestPrefix, request_id), record.SerializeAsString(), false});
}

absl::Status State::MoveJob(JobEntry* job, v1::JobState to) {
  const v1::JobState from = job->record.state();
  if (!IsLegal(from, to)) {
    const auto error = absl::InternalError(
        absl::StrCat("job ", job->record.job_id(), " cannot go from ", ShortName(from), " to ", ShortName(to)));
    spdlog::error("illegal_transition {}", std::string(error.message()));
    return error;
  }
  job->record.set_state(to);
  if (HasEnded(to)) {
    *job->record.mutable_finished_at() = ToProto(Now());
  } else {
    job->record.clear_finished_at();
  }
  MarkJob(job);
  TouchSchedule();
  spdlog::info("job_state job_id={} from={} to={}{}", job->record.job_id(), std::string(ShortName(from)),
               std::string(ShortName(to)),
               job->record.message().empty() ? "" : " message=\"" + job->record.message() + "\"");
  return absl::OkStatus();
}

absl::Status State::MoveStage(JobEntry* job, internal::StageRecord* stage, v1::StageState to) {
  const v1::StageState from = stage->state();
  if (!IsLegal(from, to)) {
    const auto error =
        absl::InternalError(absl::StrCat("stage ", ShortName(stage->stage()), " of job ", job->record.job_id(),
                                         " cannot go from ", ShortName(from), " to ", ShortName(to)));
    spdlog::error("illegal_transition {}", std::string(error.message()));
    return error;
  }
  stage->set_state(to);
  if (to == v1::STAGE_STATE_SUCCEEDED || to == v1::STAGE_STATE_FAILED || to == v1::STAGE_STATE_CANCELLED) {
    *stage->mutable_finished_at() = ToProto(Now());
  }
  MarkJob(job);
  TouchSchedule();
  spdlog::info("stage_state job_id={} stage={} from={} to={}", job->record.job_id(),
               std::string(ShortName(stage->stage())), std::string(ShortName(from)), std::string(ShortName(to)));
  return absl::OkStatus();
}

absl::Status State::MoveTask(JobEntry* job, TaskEntry* task, v1::TaskState to) {
  internal::TaskRecord& record = task->record;
  const v1::TaskState from = record.state();
  if (!IsLegal(from, to)) {
    const auto error = absl::InternalError(
        absl::StrCat("task ", record.task_id(), " cannot go from ", ShortName(from), " to ", ShortName(to)));
    spdlog::error("illegal_transition {}", std::string(error.message()));
    return error;
  }
  record.set_state(to);
  MarkTask(job, *task);
  TouchSchedule();
  spdlog::info(
      "task_state task_id={} epoch={} worker_id={} from={} to={}{}", record.task_id(), record.epoch(),
      record.worker_id(), std::string(ShortName(from)), std::string(ShortName(to)),
      to == v1::TASK_STATE_WAITING || to == v1::TASK_STATE_FAILED ? " error=\"" + record.last_error() + "\"" : "");
  return absl::OkStatus();
}

void State::MarkJob(JobEntry* job) {
  marked_jobs_.insert(job->record.job_id());
  Touch(job);
}

void State::MarkTask(JobEntry* job, const TaskEntry& task) {
  marked_tasks_.emplace(job->record.job_id(), task.record.task_id());
  Touch(job);
}

void State::MarkLosses(JobEntry* job) {
  marked_losses_.insert(job->record.job_id());
  Touch(job);
}

std::vector<RecordChange> State::TakeChanges() {
  std::vector<RecordChange> changes = std::exchange(changes_, {});
  if (std::exchange(coordinator_marked_, false))
    changes.push_back({kCoordinatorKey, coordinator_.SerializeAsString(), false});
  for (const std::string& job_id : marked_jobs_) {
    changes.push_back({absl::StrCat(kJobPrefix, job_id), jobs_.at(job_id).record.SerializeAsString(), false});
  }
  for (const auto& [job_id, task_id] : marked_tasks_) {
    changes.push_back({TaskKey(job_id, task_id), jobs_.at(job_id).tasks.at(task_id).record.SerializeAsString(), false});
  }
  for (const std::string& job_id : marked_losses_) {
    internal::LossRecord record;
    for (const auto& [step, point] : jobs_.at(job_id).losses) *record.add_losses() = point;
    changes.push_back({absl::StrCat(kLossPrefix, job_id), record.SerializeAsString(), false});
  }
  marked_jobs_.clear();
  marked_tasks_.clear();
  marked_losses_.clear();
  return changes;
}

}  // namespace retort
