#include "worker/reconcile.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace retort::worker {
namespace {

// Whether the process holds something that the assignment needs.
bool IsInTheWay(const RunningView& process, const v1::Assignment& assignment) {
  if (process.key.task_id == assignment.ref().task_id()) return true;
  return std::any_of(assignment.gpu_indices().begin(), assignment.gpu_indices().end(), [&](int gpu) {
    return std::find(process.gpu_indices.begin(), process.gpu_indices.end(), gpu) != process.gpu_indices.end();
  });
}

}  // namespace

TaskKey KeyOf(const v1::TaskRef& ref) { return {ref.task_id(), ref.epoch()}; }

v1::TaskRef RefOf(const TaskKey& key) {
  v1::TaskRef ref;
  ref.set_task_id(key.task_id);
  ref.set_epoch(key.epoch);
  return ref;
}

std::string NameOf(const TaskKey& key) { return absl::StrCat(key.task_id, ".", key.epoch); }

ReconcilePlan Reconcile(const std::vector<v1::Assignment>& assignments, const std::vector<RunningView>& running,
                        const std::set<TaskKey>& ended) {
  std::set<TaskKey> wanted;
  for (const v1::Assignment& assignment : assignments) wanted.insert(KeyOf(assignment.ref()));
  std::set<TaskKey> present;
  ReconcilePlan plan;
  for (const RunningView& process : running) {
    present.insert(process.key);
    if (!process.stopping && wanted.count(process.key) == 0) plan.stop.push_back(process.key);
  }
  for (const TaskKey& key : ended) {
    if (wanted.count(key) == 0) plan.forget.push_back(key);
  }
  for (const v1::Assignment& assignment : assignments) {
    const TaskKey key = KeyOf(assignment.ref());
    if (present.count(key) > 0 || ended.count(key) > 0) continue;
    const bool blocked = std::any_of(running.begin(), running.end(),
                                     [&](const RunningView& process) { return IsInTheWay(process, assignment); });
    if (!blocked) plan.start.push_back(assignment);
  }
  return plan;
}

}  // namespace retort::worker
