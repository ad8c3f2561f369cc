// Decides what a worker starts and stops, from what it is told and what it sees. Pure.
#pragma once

#include <compare>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "retort/v1/worker.pb.h"

namespace retort::worker {

// One placement of one task; the program's own form of v1::TaskRef, with an order.
struct TaskKey {
  std::string task_id;
  uint64_t epoch = 0;
  auto operator<=>(const TaskKey&) const = default;
};

TaskKey KeyOf(const v1::TaskRef& ref);
v1::TaskRef RefOf(const TaskKey& key);
// "<task_id>.<epoch>", the name of its folder.
std::string NameOf(const TaskKey& key);

// A process that this daemon started and that has not ended yet.
struct RunningView {
  TaskKey key;
  std::vector<int> gpu_indices;
  bool stopping = false;
};

struct ReconcilePlan {
  std::vector<v1::Assignment> start;
  std::vector<TaskKey> stop;
  std::vector<TaskKey> forget;  // ended placements that nobody assigns any more
};

// `assignments` is everything that should run; `ended` holds the placements that this daemon ran to their end. A
// placement is run once: an ended one is not started again while the coordinator has yet to hear of its end. What must
// wait for another process to go (an older placement of the same task, or one on the same GPU) is left out of `start`:
// call again when a process has ended.
ReconcilePlan Reconcile(const std::vector<v1::Assignment>& assignments, const std::vector<RunningView>& running,
                        const std::set<TaskKey>& ended);

}  // namespace retort::worker
