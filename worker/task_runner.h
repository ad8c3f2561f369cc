// Runs the task processes of this machine.
//
// One thread owns them all: it starts them (the kernel ties their life to that thread), reads their output, notices
// their end, stops those whose assignment is withdrawn. Others tell it what should run and are told what happened.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/file.h"
#include "retort/v1/worker.pb.h"
#include "worker/reconcile.h"
#include "worker/task_launch.h"

namespace retort::worker {

struct TaskRunnerOptions {
  LaunchOptions launch;
  // Between SIGTERM and SIGKILL when an assignment is withdrawn.
  absl::Duration stop_grace = absl::Seconds(2);
  // Both are called on the runner's thread and must not block.
  std::function<void(const TaskKey& task, const std::string& path, int64_t size_bytes)> on_log_grown;
  std::function<void(const v1::TaskExit& exit)> on_exit;
};

// Thread-safe.
class TaskRunner {
 public:
  // Errors: kInternal (no descriptors left).
  static absl::StatusOr<std::unique_ptr<TaskRunner>> Start(TaskRunnerOptions options);
  // Kills what still runs.
  ~TaskRunner();
  TaskRunner(const TaskRunner&) = delete;
  TaskRunner& operator=(const TaskRunner&) = delete;

  // What should run from now on, all of it.
  void SetAssignments(std::vector<v1::Assignment> assignments);
  // Nothing should run any more: SIGTERM, then after `grace` SIGKILL; zero: SIGKILL at once. Assignments set later
  // count again.
  void StopAll(absl::Duration grace);
  // The coordinator has heard of this placement's end.
  void Acknowledge(const TaskKey& task);

  // Processes that run, and placements whose end the coordinator has not acknowledged: for it they still run.
  std::vector<v1::RunningTask> Running() const;
  // Names of the folders of those and of what is being started.
  std::set<std::string> FoldersInUse() const;
  // Waits until no process runs.
  bool WaitUntilIdle(absl::Duration timeout) const;

 private:
  struct Process;
  explicit TaskRunner(TaskRunnerOptions options, UniqueFd epoll, UniqueFd wake);

  void Wake();
  void Loop();
  void TakeOrders();
  void ApplyAssignments();
  void StartTask(const v1::Assignment& assignment);
  void StopTask(Process& process, absl::Duration grace);
  void ReadOutput(Process& process);
  void ReapEnded();
  void End(Process& process, int wait_status);
  void ReportEnd(const v1::TaskExit& exit);
  void KillOverdue();
  void CheckMemory();
  void PublishRunning();
  int PollMilliseconds() const;

  const TaskRunnerOptions options_;
  const UniqueFd epoll_;
  const UniqueFd wake_;

  // Of the loop's thread alone.
  std::map<TaskKey, std::unique_ptr<Process>> processes_;
  std::set<TaskKey> ended_;  // ran to their end, still assigned or not acknowledged
  std::set<TaskKey> unacknowledged_;
  std::vector<v1::Assignment> assignments_;
  uint64_t taken_ = 0;  // orders seen
  absl::Time next_memory_check_ = absl::InfinitePast();

  mutable std::mutex mu_;
  bool quitting_ = false;
  uint64_t ordered_ = 0;  // orders given so far
  uint64_t applied_ = 0;  // of them, carried out
  std::vector<v1::Assignment> ordered_assignments_;
  bool stop_ordered_ = false;
  absl::Duration stop_grace_;
  std::vector<TaskKey> acknowledged_;
  std::vector<v1::RunningTask> running_;
  std::vector<TaskKey> starting_;  // their folders may exist already
  size_t process_count_ = 0;

  std::thread thread_;
};

}  // namespace retort::worker
