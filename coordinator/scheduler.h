// Decides which waiting task runs where. A pure function: the same snapshot and time give the same plan.
//
// Every task takes one slot: a GPU of a worker, or one of its CPU slots. Groups are served by priority, then in order
// of submission. First each group gets what it must have; what is left goes to optional replicas. A group that must
// wait for slots it could have once others finish keeps groups behind it from taking them, so that a large gang is not
// starved by small tasks; one that no set of today's workers could ever hold blocks nobody.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "coordinator/stages.h"

namespace retort {

struct WorkerView {
  std::string worker_id;
  bool schedulable = true;  // ready: neither suspect, lost nor draining
  int cpu_slots_total = 0;
  int cpu_slots_free = 0;
  int gpus_total = 0;
  std::vector<int> gpus_free;  // CUDA indices
};

struct TaskView {
  std::string task_id;
  bool was_placed = false;                       // it ran before: putting it back is no growth
  absl::Time not_before = absl::InfinitePast();  // back-off
  std::string avoid_worker;                      // where it failed last; used only when nothing else is free
};

struct GroupView {
  std::string job_id;
  int priority = 0;       // higher first
  uint64_t sequence = 0;  // order of submission
  GroupKind kind = GroupKind::kSeparate;
  Device device = Device::kCpu;
  int min = 1;       // tasks that must run (those that have finished count)
  int placed = 0;    // tasks that have a process
  int finished = 0;  // tasks that have completed
  // Where its tasks are or, with none placed, were: a group does not mix, nor does it move when its kind of slot is
  // gone. Absent: none has run yet.
  std::optional<bool> placed_on_gpu;
  // A gang takes new optional ranks only when its membership has not changed since then for kGangSettleTime.
  absl::Time stable_since = absl::InfinitePast();
  std::vector<TaskView> waiting;  // by replica
};

struct Snapshot {
  uint64_t version = 0;
  std::vector<WorkerView> workers;  // lost ones left out
  std::vector<GroupView> groups;
};

struct Placement {
  std::string task_id;
  std::string worker_id;
  std::optional<int> gpu_index;  // absent: a CPU slot
};

struct Plan {
  uint64_t version = 0;  // of the snapshot
  std::vector<Placement> placements;
  std::map<std::string, std::string> wait_reasons;  // of every waiting task that is not placed, by task id
  absl::Time wake_at = absl::InfiniteFuture();      // when the passing of time alone may allow more
};

inline constexpr absl::Duration kGangSettleTime = absl::Seconds(3);

Plan Schedule(const Snapshot& snapshot, absl::Time now);

}  // namespace retort
