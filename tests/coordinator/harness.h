// A coordinator's core over a real state log, a clock that stands still, and workers that do what they are told.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "coordinator/core.h"
#include "coordinator/state_log.h"

namespace retort {

using PlacementKey = std::pair<std::string, uint64_t>;  // task id, epoch

// Spec of a job with every stage, of one with a dataset and training alone, and of one that ends with curated traces.
v1::JobSpec FullSpec();
v1::JobSpec TrainSpec(int min_ranks, int max_ranks);
v1::JobSpec GenerateSpec(int min_replicas, int max_replicas);

// What a task of that kind yields.
v1::TaskResult ResultFor(const v1::GetTaskResponse& task);

class Harness {
 public:
  explicit Harness(CoordinatorOptions options = {});
  ~Harness();

  // Closes everything and opens it again from what is on disk, as after kill -9. Workers know nothing of it.
  void Restart();

  Core& core() { return *core_; }
  FakeClock& clock() { return clock_; }
  StateLog& log() { return *log_; }
  std::vector<PlacementKey>& released() { return released_; }
  // What the sample store says of every set.
  absl::StatusOr<v1::SampleSetInfo>& sample_set() { return sample_set_; }

  // Registers a worker, or its next incarnation, which runs nothing.
  void StartWorker(const std::string& worker_id, int cpu_slots, int gpus = 0);
  // Silent from now on; its processes go on for all that anybody knows.
  void Silence(const std::string& worker_id);
  void Unsilence(const std::string& worker_id);
  // Workers take their assignments: they start what is new, and end and report what was withdrawn. Duties run until
  // nothing changes.
  void Settle();
  // The daemon was told to stop: it says so, ends its tasks, tells that too, and is gone.
  void StopWorker(const std::string& worker_id);
  // The worker itself kills all that it runs, as when its lease is over, and reports it.
  void KillTasksOf(const std::string& worker_id);
  // The task's process goes on to be there and says nothing any more.
  void Hang(const std::string& task_id) { hanging_.insert(task_id); }
  // Time passes in small steps, with heartbeats, signs of life of the tasks, and duties.
  void Advance(absl::Duration by);

  std::string Submit(const v1::JobSpec& spec, const std::string& request_id = "");
  v1::Job Job(const std::string& job_id);
  const v1::StageStatus* Stage(const v1::Job& job, v1::Stage stage);

  // The process of a task ends.
  void Exit(const std::string& task_id, int exit_code, int signal = 0, const std::string& message = "");
  // The running tasks (that have a process) of a job, in order.
  std::vector<v1::TaskRef> Running(const std::string& job_id);
  v1::TaskRef RunningRef(const std::string& task_id);
  std::string WorkerOf(const std::string& task_id);
  int GpusOf(const std::string& task_id);
  // The task completes as it should and its process exits.
  void Complete(const v1::TaskRef& ref);
  // All running tasks complete, until the job waits for something else or has ended. `after_each` runs after each
  // completion.
  void RunToEnd(
      const std::string& job_id, const std::function<void()>& after_each = [] {});

 private:
  struct FakeWorker {
    std::string incarnation;
    int cpu_slots = 0;
    int gpus = 0;
    bool silent = false;
    std::map<PlacementKey, v1::Assignment> running;
  };
  void Open();
  void Register(const std::string& worker_id);
  void Heartbeat(const std::string& worker_id, bool stopping = false);
  bool Sync(const std::string& worker_id);
  FakeWorker* Holder(const std::string& task_id, v1::TaskRef* ref, std::string* worker_id);

  const CoordinatorOptions options_;
  std::string folder_;
  FakeClock clock_;
  std::unique_ptr<StateLog> log_;
  std::unique_ptr<Core> core_;
  std::map<std::string, FakeWorker> workers_;
  std::vector<PlacementKey> released_;
  absl::StatusOr<v1::SampleSetInfo> sample_set_ = absl::NotFoundError("no such set");
  std::set<std::string> hanging_;  // task ids
  int next_request_ = 0;
};

}  // namespace retort
