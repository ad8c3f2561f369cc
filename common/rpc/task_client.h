// The task process's side of the protocol: retort-teacher, retort-student and retort-curate run their work through
// RunTask.
//
// A task process is started by a worker daemon as "<role> task --coordinator H:P --task-id ID --epoch E --work-dir DIR
// ...". It lives and dies with its placement: when the coordinator says that the placement is fenced, any call here
// ends the process with exit code 3 (and so do other services' clients through ExitIfFenced), and when its daemon dies
// the kernel kills it. Every call is retried while the coordinator is away, so that it may be restarted at any moment.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/rpc/channel.h"
#include "retort/v1/rendezvous_service.grpc.pb.h"
#include "retort/v1/task_service.grpc.pb.h"

namespace retort {

// Exit codes of a task process; the daemon and the coordinator know them.
inline constexpr int kTaskExitDone = 0;     // CompleteTask was acknowledged
inline constexpr int kTaskExitFailed = 1;   // FailTask was acknowledged
inline constexpr int kTaskExitUsage = 2;    // the command line is wrong
inline constexpr int kTaskExitFenced = 3;   // the placement is no longer the current one
inline constexpr int kTaskExitUnheard = 4;  // neither could be delivered: counts as an infrastructure failure

// How the daemon tells a task who its parent is. Set: the task dies with that process. Unset (started by hand): it does
// not.
inline constexpr char kParentPidVariable[] = "RETORT_PARENT_PID";

struct TaskFlags {
  ChannelOptions channel;
  v1::TaskRef ref;
  std::string work_dir;   // private to this placement, exists, the process's working folder
  std::string cache_dir;  // shared by the tasks of this machine; exists
  int threads = 1;        // CPU threads to use
};

// Parses what follows "<program> task". Errors: kInvalidArgument naming the flag.
absl::StatusOr<TaskFlags> ParseTaskFlags(int argc, const char* const* argv);

// Logs one line and ends the process with kTaskExitFenced, at once: no destructor runs, nothing is flushed.
[[noreturn]] void ExitFenced(const v1::TaskRef& ref, absl::string_view reason);

// Ends the process when `status` is the coordinator's refusal of a fenced placement (kFailedPrecondition); for the
// clients of other services whose requests carry a TaskRef. Returns otherwise.
void ExitIfFenced(const v1::TaskRef& ref, const absl::Status& status);

// What the coordinator should do about an error that ended a task. What the user has to mend is a user error:
// kInvalidArgument, kNotFound, kFailedPrecondition, kPermissionDenied, kUnimplemented, kOutOfRange, and
// kResourceExhausted (disk or memory full). All else is infrastructure, and tried again.
v1::FailureCause FailureCauseOf(const absl::Status& status);

// Names the artifact that could not be read whole as the reason of `error`: the coordinator looks whether its copy is
// damaged. WithContext keeps it.
absl::Status WithUnreadableArtifact(absl::Status error, absl::string_view artifact_id);

// One placement of one task. Thread-safe.
class TaskContext {
 public:
  // Opens the channel and asks what to do; starts the reporting thread. Errors: kInvalidArgument (flags), kUnavailable
  // (the coordinator did not answer for a minute), and whatever else GetTask answers. A task that does not exist any
  // more ends the process as fenced.
  static absl::StatusOr<std::unique_ptr<TaskContext>> Open(TaskFlags flags);
  ~TaskContext();
  TaskContext(const TaskContext&) = delete;
  TaskContext& operator=(const TaskContext&) = delete;

  const TaskFlags& flags() const { return flags_; }
  const v1::TaskRef& ref() const { return flags_.ref; }
  const v1::GetTaskResponse& task() const { return task_; }
  // For the clients of the sample and artifact services.
  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }

  // Leaves numbers for the reporting thread, which sends the latest at most five times a second. Never blocks.
  void ReportProgress(v1::Progress progress) ABSL_LOCKS_EXCLUDED(mu_);
  // Queues a point for the coordinator. None is lost while the process lives: points are sent again until acknowledged.
  // Blocks only when 65,536 points wait.
  void ReportLoss(v1::LossPoint point) ABSL_LOCKS_EXCLUDED(mu_);
  // Waits until every queued point is acknowledged. Errors: kDeadlineExceeded.
  absl::Status FlushLosses(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mu_);
  // The membership that the coordinator wants, as last heard; 0: none yet. When above the rank's own, it leaves at the
  // next step boundary and joins again.
  uint64_t gang_generation() const { return gang_generation_.load(std::memory_order_relaxed); }

  // Durable when OK. The folder must have been put into the artifact store before.
  absl::Status RegisterCheckpoint(const v1::Checkpoint& checkpoint);

  // Waits until all placed tasks of the gang have joined. `completed_steps` is -1 for a rank without state. Errors:
  // kDeadlineExceeded after `timeout`.
  absl::StatusOr<v1::JoinGangResponse> JoinGang(const std::string& address, int64_t completed_steps,
                                                uint64_t last_generation, absl::Duration timeout);

  // Flushes losses, stops reporting, delivers the result. Call once, last; RunTask does it.
  absl::Status Complete(const v1::TaskResult& result);
  // Stops reporting, delivers the failure. Call once, last; RunTask does it.
  absl::Status Fail(const absl::Status& failure);

 private:
  TaskContext(TaskFlags flags, std::shared_ptr<grpc::Channel> channel);
  void ReportLoop() ABSL_LOCKS_EXCLUDED(mu_);
  void StopReporting() ABSL_LOCKS_EXCLUDED(mu_);

  const TaskFlags flags_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::TaskService::Stub> tasks_;
  const std::unique_ptr<v1::RendezvousService::Stub> rendezvous_;
  v1::GetTaskResponse task_;
  std::atomic<uint64_t> gang_generation_{0};

  absl::Mutex mu_;
  v1::Progress progress_ ABSL_GUARDED_BY(mu_);
  bool progress_changed_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<v1::LossPoint> losses_ ABSL_GUARDED_BY(mu_);
  bool flushing_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  grpc::ClientContext* report_in_flight_ ABSL_GUARDED_BY(mu_) = nullptr;
  std::thread reporter_;
};

// main() of a task process after argv[1] == "task": logging, parent watch, flags, GetTask, `work`, then CompleteTask or
// FailTask. Returns the exit code. An exception that escapes `work` is reported as kInternal (std::bad_alloc:
// kResourceExhausted).
int RunTask(int argc, char** argv, absl::string_view role,
            const std::function<absl::StatusOr<v1::TaskResult>(TaskContext&)>& work);

}  // namespace retort
