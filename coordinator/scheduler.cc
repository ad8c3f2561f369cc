#include "coordinator/scheduler.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace retort {
namespace {

// The free slots of one kind (GPU or CPU), taken one by one.
class Slots {
 public:
  Slots(const std::vector<WorkerView>& workers, bool gpu) : gpu_(gpu) {
    for (const WorkerView& worker : workers) {
      total_ += gpu ? worker.gpus_total : worker.cpu_slots_total;
      const int free = !worker.schedulable ? 0
                       : gpu               ? static_cast<int>(worker.gpus_free.size())
                                           : worker.cpu_slots_free;
      free_ += std::max(0, free);
      entries_.push_back({&worker, std::max(0, free), 0});
    }
  }

  int total() const { return total_; }
  int available() const { return free_ - reserved_; }
  int free() const { return free_; }
  // Keeps up to `count` slots from everybody who asks later.
  void Reserve(int count) { reserved_ = std::min(free_, reserved_ + count); }

  // Takes a slot of the worker with the most free ones, another than `avoid` where there is one. Needs free() > 0.
  Placement Take(const std::string& task_id, const std::string& avoid) {
    Entry* best = nullptr;
    const auto better = [&](const Entry& a, const Entry& b) {
      const bool a_avoided = a.worker->worker_id == avoid;
      const bool b_avoided = b.worker->worker_id == avoid;
      if (a_avoided != b_avoided) return b_avoided;
      if (a.free != b.free) return a.free > b.free;
      return a.worker->worker_id < b.worker->worker_id;
    };
    for (Entry& entry : entries_) {
      if (entry.free > 0 && (best == nullptr || better(entry, *best))) best = &entry;
    }
    --best->free;
    --free_;
    Placement placement{task_id, best->worker->worker_id, std::nullopt};
    if (gpu_) placement.gpu_index = best->worker->gpus_free[static_cast<size_t>(best->taken)];
    ++best->taken;
    return placement;
  }

 private:
  struct Entry {
    const WorkerView* worker;
    int free;
    int taken;
  };
  const bool gpu_;
  int total_ = 0;
  int free_ = 0;
  int reserved_ = 0;
  std::vector<Entry> entries_;
};

class Planner {
 public:
  Planner(const Snapshot& snapshot, absl::Time now)
      : snapshot_(snapshot), now_(now), cpu_(snapshot.workers, false), gpu_(snapshot.workers, true) {
    plan_.version = snapshot.version;
  }

  Plan Run() {
    std::vector<const GroupView*> order;
    for (const GroupView& group : snapshot_.groups) order.push_back(&group);
    std::stable_sort(order.begin(), order.end(), [](const GroupView* a, const GroupView* b) {
      if (a->priority != b->priority) return a->priority > b->priority;
      if (a->sequence != b->sequence) return a->sequence < b->sequence;
      return a->job_id < b->job_id;
    });
    std::vector<int> placed(order.size());
    for (size_t i = 0; i < order.size(); ++i) placed[i] = PlaceRequired(*order[i]);
    for (size_t i = 0; i < order.size(); ++i) PlaceOptional(*order[i], placed[i]);
    return std::move(plan_);
  }

 private:
  bool WantsGpu(const GroupView& group) const {
    if (group.placed_on_gpu.has_value()) return *group.placed_on_gpu;
    if (group.device == Device::kAuto) return gpu_.total() > 0;
    return group.device == Device::kCuda;
  }
  Slots& SlotsFor(const GroupView& group) { return WantsGpu(group) ? gpu_ : cpu_; }

  bool IsTaken(const TaskView& task) const { return taken_.count(task.task_id) > 0; }

  bool IsDue(const TaskView& task) {
    if (task.not_before <= now_) return true;
    plan_.wake_at = std::min(plan_.wake_at, task.not_before);
    return false;
  }

  void Place(const TaskView& task, Slots& slots) {
    plan_.placements.push_back(slots.Take(task.task_id, task.avoid_worker));
    plan_.wait_reasons.erase(task.task_id);
    taken_[task.task_id] = true;
  }

  void Explain(const TaskView& task, std::string reason) { plan_.wait_reasons[task.task_id] = std::move(reason); }

  std::string Shortage(const GroupView& group, const Slots& slots, int needed) const {
    const char* kind = WantsGpu(group) ? "gpu" : "cpu slot";
    if (snapshot_.workers.empty()) return "no worker has registered";
    const char* plural = needed == 1 ? "" : "s";
    const char* at_once = needed == 1 ? "" : " at once";
    if (slots.total() == 0) {
      return absl::StrCat("needs ", needed, " ", kind, plural, at_once, ", the workers have none",
                          group.device == Device::kAuto && WantsGpu(group)
                              ? "; it began on a GPU and is not moved to CPUs: bring such a worker back, or cancel the "
                                "job and submit it with device: cpu"
                              : "");
    }
    if (needed > slots.total() - group.placed) {
      return absl::StrCat("needs ", needed, " ", kind, plural, at_once, ", all workers together have ", slots.total());
    }
    if (slots.free() > 0 && slots.available() <= 0) {
      return absl::StrCat("the ", slots.free(), " free ", kind, slots.free() == 1 ? " is" : "s are",
                          " kept for a job of higher priority or submitted earlier");
    }
    return absl::StrCat("needs ", needed, " ", kind, plural, at_once, ", ", std::max(0, slots.available()), " free of ",
                        slots.total());
  }

  // Returns how many tasks of the group this plan places.
  int PlaceRequired(const GroupView& group) {
    Slots& slots = SlotsFor(group);
    int lacking = std::max(0, group.min - group.finished - group.placed);
    lacking = std::min(lacking, static_cast<int>(group.waiting.size()));
    std::vector<const TaskView*> due;
    for (const TaskView& task : group.waiting) {
      if (IsDue(task)) {
        due.push_back(&task);
      } else {
        Explain(task, absl::StrCat("tried again in ",
                                   absl::FormatDuration(absl::Ceil(task.not_before - now_, absl::Milliseconds(100))),
                                   " after a failure"));
      }
    }
    // Ranks that ran before come first: their gang waits for them.
    std::stable_sort(due.begin(), due.end(),
                     [](const TaskView* a, const TaskView* b) { return a->was_placed > b->was_placed; });
    int placed = 0;
    if (group.kind == GroupKind::kGang && group.placed == 0) {
      // All or none; while one of the required ranks backs off, its peers wait with it.
      if (lacking > 0 && static_cast<int>(due.size()) < lacking) {
        for (const TaskView* task : due)
          Explain(*task, "waits for the other ranks of its gang, which failed and back off");
        if (lacking <= slots.total()) slots.Reserve(lacking);
        return 0;
      }
      if (slots.available() < lacking) {
        for (const TaskView* task : due) Explain(*task, Shortage(group, slots, lacking));
        if (lacking <= slots.total()) slots.Reserve(lacking);
        return 0;
      }
    }
    for (const TaskView* task : due) {
      const bool required = placed < lacking;
      if (!required && !(group.kind == GroupKind::kGang && task->was_placed && group.placed > 0)) continue;
      if (slots.available() > 0) {
        Place(*task, slots);
        ++placed;
      } else {
        Explain(*task, Shortage(group, slots, required ? lacking - placed : 1));
      }
    }
    if (placed < lacking && lacking + group.placed <= slots.total()) slots.Reserve(lacking - placed);
    return placed;
  }

  void PlaceOptional(const GroupView& group, int placed_now) {
    Slots& slots = SlotsFor(group);
    const bool has_required = group.finished + group.placed + placed_now >= group.min;
    const bool gang_settles =
        group.kind == GroupKind::kGang && group.placed > 0 && now_ < group.stable_since + kGangSettleTime;
    for (const TaskView& task : group.waiting) {
      if (IsTaken(task) || task.not_before > now_) continue;
      if (!has_required || slots.available() <= 0) {
        if (plan_.wait_reasons.count(task.task_id) == 0) Explain(task, Shortage(group, slots, 1));
        continue;
      }
      if (gang_settles && !task.was_placed) {
        plan_.wake_at = std::min(plan_.wake_at, group.stable_since + kGangSettleTime);
        Explain(task, "joins when its gang's membership has settled");
        continue;
      }
      Place(task, slots);
    }
  }

  const Snapshot& snapshot_;
  const absl::Time now_;
  Slots cpu_;
  Slots gpu_;
  Plan plan_;
  std::map<std::string, bool> taken_;
};

}  // namespace

Plan Schedule(const Snapshot& snapshot, absl::Time now) { return Planner(snapshot, now).Run(); }

}  // namespace retort
