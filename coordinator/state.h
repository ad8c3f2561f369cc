// The coordinator's whole state, in memory: a function of the durable records, plus what may be lost in a restart
// (workers' liveness, progress, rendezvous).
//
// Not thread-safe: Core (core.h) owns the one lock. The functions that change it lie in ops/; none of them blocks or
// does I/O. Each marks the records it changed; TakeChanges() gives them to the state log.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "coordinator/stages.h"
#include "coordinator/state_log.h"
#include "retort/internal/coordinator_state.pb.h"
#include "retort/v1/worker.pb.h"

namespace retort {

struct CoordinatorOptions {
  absl::Duration suspect_after = absl::Milliseconds(500);  // silence until nothing new is placed on a worker
  absl::Duration lost_after = absl::Seconds(10);  // silence until its tasks are fenced; also their lease's length
  absl::Duration join_timeout =
      absl::Seconds(60);  // a rank that makes no step and does not join its gang for this long hangs
  absl::Duration first_join_timeout = absl::Minutes(10);  // the same for one that still loads
  absl::Duration one_failure_within =
      absl::Seconds(1);                            // failures of one job within it are charged to its budget as one
  absl::Duration rejoin_grace = absl::Seconds(3);  // a gang waits this long for a dead rank to be placed again
  absl::Duration replacement_wait =
      absl::Seconds(10);  // ... and this long for its replacement to load; then it goes on without
  absl::Duration completion_grace = absl::Seconds(2);    // for the peers of a task that completed their common work
  absl::Duration exit_grace = absl::Seconds(10);         // from a completed task's last word to its exit
  absl::Duration missing_after = absl::Seconds(5);       // a running task that its worker no longer lists has died
  absl::Duration start_timeout = absl::Seconds(30);      // from placement to the worker's first sign of the process
  absl::Duration first_word_timeout = absl::Minutes(5);  // from there to the first word of the process itself
  absl::Duration silent_task_after = absl::Seconds(60);  // a process that says nothing for this long hangs as a whole
};

struct TaskEntry {
  internal::TaskRecord record;
  v1::Progress progress;
  std::string wait_reason;
  absl::Time placed_at = absl::InfinitePast();
  absl::Time finished_at = absl::InfinitePast();
  absl::Time lost_at = absl::InfinitePast();    // when it last lost its placement to a failure
  absl::Time moved_at = absl::InfinitePast();   // when its progress last changed
  absl::Time listed_at = absl::InfinitePast();  // when its process was first known to run
  absl::Time heard_at = absl::InfinitePast();   // when this placement's process itself last said something
  bool grows = false;                           // a rank that its gang does not wait for: it is taken in when it joins
  bool joined = false;                          // this placement has been in its gang's rendezvous
};

struct JobEntry {
  internal::JobRecord record;
  std::shared_ptr<const v1::JobSpec> spec;
  std::map<int64_t, v1::LossPoint> losses;  // by step
  std::map<std::string, TaskEntry> tasks;
  uint64_t revision = 1;                         // rises with every change that a watcher may see; a watcher has seen 0
  absl::Time charged_at = absl::InfinitePast();  // when a failure was last charged to its running stage's budget
};

// A process, or the promise of one, on a worker. It holds its slot until it is known to be gone.
struct PlacementEntry {
  std::string job_id;
  std::string role;
  std::vector<int> gpu_indices;  // empty: a CPU slot
  int threads = 1;
  bool withdrawn = false;  // no longer among the worker's assignments
  absl::Time withdrawn_at = absl::InfinitePast();
  absl::Time missing_since = absl::InfiniteFuture();  // since when the worker's heartbeats lack it
};

struct WorkerEntry {
  std::string worker_id;
  std::string incarnation_id;  // empty until it registers after a restart of the coordinator
  std::deque<std::string> retired_incarnations;
  std::string hostname;
  v1::WorkerResources resources;
  v1::WorkerState state = v1::WORKER_STATE_SUSPECT;
  bool draining = false;
  bool stopping = false;  // the daemon ends: as draining, until another incarnation registers
  absl::Time last_heartbeat;
  std::map<std::pair<std::string, uint64_t>, PlacementEntry> placements;  // by task id and epoch
  std::deque<absl::Time> failures;                                        // of tasks, in the last ten minutes
  uint64_t assignments_revision = 0;

  // It gets nothing new, and is no room that anybody could wait for.
  bool ends() const { return draining || stopping; }
};

struct GangJoin {
  uint64_t epoch = 0;
  std::string address;
  int64_t completed_steps = -1;
};

struct GangMembership {
  uint64_t generation = 0;
  std::string secret;
  std::map<std::string, GangJoin> members;  // by task id
};

// A training stage's rendezvous. Lost in a restart: ranks that need one join again.
struct GangEntry {
  std::string job_id;
  uint64_t wanted_generation = 0;                       // ranks of an older one are told to leave and join again
  absl::Time changed_at;                                // when its membership last changed
  absl::Time first_joined_at = absl::InfiniteFuture();  // of those that wait now
  std::map<std::string, GangJoin> joined;               // for wanted_generation
  GangMembership formed;
};

class State {
 public:
  State(const CoordinatorOptions& options, const Clock* clock) : options_(options), clock_(clock) {}

  // Fills an empty state from the log. Tasks that were placed still are: their workers have `lost_after` from now to
  // come back. Errors: kDataLoss (a record that cannot be read).
  absl::Status Load(const StateLog& log);

  const CoordinatorOptions& options() const { return options_; }
  absl::Time Now() const { return clock_->Now(); }

  std::map<std::string, JobEntry>& jobs() { return jobs_; }
  const std::map<std::string, JobEntry>& jobs() const { return jobs_; }
  std::map<std::string, WorkerEntry>& workers() { return workers_; }
  const std::map<std::string, WorkerEntry>& workers() const { return workers_; }
  std::map<std::string, GangEntry>& gangs() { return gangs_; }  // by job id
  const std::map<std::string, GangEntry>& gangs() const { return gangs_; }
  const std::string& coordinator_id() const { return coordinator_.coordinator_id(); }

  JobEntry* FindJob(const std::string& job_id);
  // A job by its id, by a prefix of ids that is unambiguous, or by a name (its newest job). Errors: kNotFound,
  // kInvalidArgument (ambiguous).
  absl::StatusOr<JobEntry*> ResolveJob(const std::string& name);
  // Null when there is no such task.
  TaskEntry* FindTask(const std::string& task_id, JobEntry** job);
  WorkerEntry* FindWorker(const std::string& worker_id);

  // OK when `ref` is its task's current placement. Errors: kFailedPrecondition.
  absl::Status CheckFence(const v1::TaskRef& ref, JobEntry** job, TaskEntry** task);

  // A number above all that were ever handed out, also before a restart.
  uint64_t NextEpoch();
  uint64_t NextJobSequence();

  // Names of things that live with the job.
  void AddJob(JobEntry job);
  absl::StatusOr<std::string> FindRequest(const std::string& request_id) const;  // its job id, or kNotFound
  void AddRequest(const std::string& request_id, const std::string& job_id);

  // State changes go through these: they refuse (and log) what the transition table does not allow, log one line, and
  // mark the record.
  absl::Status MoveJob(JobEntry* job, v1::JobState to);
  absl::Status MoveStage(JobEntry* job, internal::StageRecord* stage, v1::StageState to);
  absl::Status MoveTask(JobEntry* job, TaskEntry* task, v1::TaskState to);

  void MarkJob(JobEntry* job);
  void MarkTask(JobEntry* job, const TaskEntry& task);
  void MarkLosses(JobEntry* job);
  // Something a watcher sees that is not durable.
  void Touch(JobEntry* job) { ++job->revision; }
  void TouchAssignments(WorkerEntry* worker) { worker->assignments_revision = ++revision_counter_; }
  // Something changed that the scheduler looks at.
  void TouchSchedule() { ++schedule_version_; }
  uint64_t schedule_version() const { return schedule_version_; }

  // A placement that no longer holds; its sample leases are to be given back.
  void ReleaseLeases(const std::string& task_id, uint64_t epoch) { releases_.emplace_back(task_id, epoch); }
  std::vector<std::pair<std::string, uint64_t>> TakeReleases() { return std::exchange(releases_, {}); }

  // An artifact that a job named and no longer names; its folder may go once that is durable, unless another job has
  // it.
  void RetireArtifact(std::string artifact_id) { retired_artifacts_.push_back(std::move(artifact_id)); }
  std::vector<std::string> TakeRetiredArtifacts() { return std::exchange(retired_artifacts_, {}); }

  // The records that changed since the last call.
  std::vector<RecordChange> TakeChanges();

 private:
  const CoordinatorOptions options_;
  const Clock* const clock_;
  internal::CoordinatorRecord coordinator_;
  uint64_t last_epoch_ = 0;
  uint64_t revision_counter_ = 0;
  uint64_t schedule_version_ = 0;
  std::map<std::string, JobEntry> jobs_;
  std::map<std::string, WorkerEntry> workers_;
  std::map<std::string, GangEntry> gangs_;
  absl::flat_hash_map<std::string, internal::RequestRecord> requests_;
  std::vector<std::pair<std::string, uint64_t>> releases_;
  std::vector<std::string> retired_artifacts_;

  std::vector<RecordChange> changes_;  // written as they are
  std::set<std::string> marked_jobs_;
  std::set<std::string> marked_losses_;
  std::set<std::pair<std::string, std::string>> marked_tasks_;  // job id, task id
  bool coordinator_marked_ = false;
};

}  // namespace retort
