// The coordinator's state behind its one lock, and the promise that nobody is told what is not on disk.
//
// Every method changes or reads the state under the lock, queues the changed records, and returns when all that its
// answer rests on is durable; if the disk refuses, it returns kUnavailable and the caller may repeat its request.
// Methods that wait for something to happen give up at their deadline, when `cancelled` says so, and at Stop.
//
// Thread-safe. Does not own clock, log and hooks, which must outlive it. Never calls a hook under the lock.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "coordinator/live_artifacts.h"
#include "coordinator/state.h"
#include "coordinator/state_log.h"
#include "retort/v1/job_service.pb.h"
#include "retort/v1/rendezvous_service.pb.h"
#include "retort/v1/sample_service.pb.h"
#include "retort/v1/task_service.pb.h"
#include "retort/v1/worker.pb.h"
#include "storage/task_fence.h"

namespace retort {

// What the coordinator asks of the stores.
struct CoreHooks {
  // Gives the sample leases of a placement that is over to others.
  std::function<absl::Status(const std::string& task_id, uint64_t epoch)> release_holder;
  // How a sample set stands; kNotFound while no task has prepared it.
  std::function<absl::StatusOr<v1::SampleSetInfo>(const std::string& sample_set_id)> sample_set_info;
};

class Core final : public storage::TaskFence {
 public:
  // Takes the state over from the log. Errors: kDataLoss.
  static absl::StatusOr<std::unique_ptr<Core>> Create(const CoordinatorOptions& options, const Clock* clock,
                                                      StateLog* log, CoreHooks hooks);
  ~Core() override;

  // Runs the background duties in a thread, as events and time ask for it, until Stop.
  void Start();
  // Wakes whoever waits (they get kUnavailable) and ends the thread.
  void Stop();
  // The duties once: workers' silence, gangs, scheduling, leases to give back. Returns when to call again if nothing
  // happens. For tests; the thread of Start does the same.
  absl::Time RunDuties();

  // One RPC each; errors as in the ops that carry them out.
  absl::StatusOr<std::string> SubmitJob(const std::string& request_id, const v1::JobSpec& spec);
  absl::StatusOr<v1::JobState> CancelJob(const std::string& request_id, const std::string& name);
  absl::StatusOr<v1::JobState> ResumeJob(const std::string& request_id, const std::string& name);
  absl::StatusOr<v1::Job> GetJob(const std::string& name);
  absl::StatusOr<std::vector<v1::Job>> ListJobs(int limit);
  absl::StatusOr<std::vector<v1::WorkerStatus>> ListWorkers();

  absl::StatusOr<v1::GetTaskResponse> GetTask(const v1::TaskRef& ref);
  absl::StatusOr<uint64_t> ReportProgress(const v1::ReportProgressRequest& request);
  absl::Status RegisterCheckpoint(const v1::TaskRef& ref, const v1::Checkpoint& checkpoint, int64_t size_bytes);
  absl::Status CompleteTask(const v1::TaskRef& ref, const v1::TaskResult& result);
  absl::Status FailTask(const v1::TaskRef& ref, v1::FailureCause cause, const std::string& message,
                        const std::string& damaged_artifact_id = "");
  absl::Status Check(const v1::TaskRef& ref) override;

  absl::Status RegisterWorker(const v1::RegisterWorkerRequest& request);
  absl::Status Heartbeat(const v1::HeartbeatRequest& request);
  absl::Status ReportTaskExit(const v1::ReportTaskExitRequest& request);
  // Whether a log of that placement may be written. Errors: kNotFound.
  absl::Status CheckTaskLog(const v1::TaskRef& ref);

  // What the durable state names in the artifact store, and what it has let go since the last call. Nothing else may
  // be counted on to stay there. Errors: kUnavailable (the disk refuses; what was let go is forgotten).
  absl::StatusOr<LiveArtifacts> TakeLiveArtifacts();

  using Cancelled = std::function<bool()>;
  // Waits for a revision of the worker's assignments above `seen` (0: any). Errors: kNotFound, kAborted,
  // kDeadlineExceeded, kUnavailable (stopping).
  absl::StatusOr<v1::WatchAssignmentsResponse> WaitAssignments(const v1::WatchAssignmentsRequest& request, int64_t seen,
                                                               absl::Duration timeout, const Cancelled& cancelled);
  struct JobView {
    v1::Job job;
    uint64_t revision = 0;
  };
  // Waits for a change of the job after revision `seen`. Errors: kNotFound, kDeadlineExceeded, kUnavailable.
  absl::StatusOr<JobView> WaitJob(const std::string& name, uint64_t seen, absl::Duration timeout,
                                  const Cancelled& cancelled);
  // Errors: kFailedPrecondition (fenced), kDeadlineExceeded (ask again), kUnavailable (stopping).
  absl::StatusOr<v1::JoinGangResponse> JoinGang(const v1::JoinGangRequest& request, absl::Duration timeout,
                                                const Cancelled& cancelled);

  const CoordinatorOptions& options() const { return options_; }
  const std::string& coordinator_id() const { return coordinator_id_; }

 private:
  Core(const CoordinatorOptions& options, const Clock* clock, StateLog* log, CoreHooks hooks);

  // Queues what changed and wakes whoever may care. Returns the position that answers given now rest on.
  uint64_t Queue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Puts what the store knows about the job's traces in place of what its tasks said: tasks die, traces stay.
  void CountTraces(v1::Job* job) const;
  // Waits for news; false: time is up, the caller has gone or the coordinator stops.
  bool WaitForNews(absl::Time deadline, const Cancelled& cancelled) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status NoNews() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Time AdvanceJobs() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Time Place() ABSL_LOCKS_EXCLUDED(mu_);
  void Loop() ABSL_LOCKS_EXCLUDED(mu_);

  const CoordinatorOptions options_;
  const Clock* const clock_;
  StateLog* const log_;
  const CoreHooks hooks_;
  std::string coordinator_id_;  // fixed after Create

  absl::Mutex mu_;
  absl::CondVar news_;    // something that a waiting RPC may care for
  absl::CondVar duties_;  // something that the background duties care for
  State state_ ABSL_GUARDED_BY(mu_);
  uint64_t news_count_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t placed_version_ ABSL_GUARDED_BY(mu_) = 0;  // schedule version that was last planned for
  absl::Time last_duties_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  absl::Time plan_again_at_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace retort
