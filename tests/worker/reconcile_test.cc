#include "worker/reconcile.h"

#include <gtest/gtest.h>

#include <random>

#include "absl/strings/str_cat.h"

namespace retort::worker {
namespace {

v1::Assignment Assign(const std::string& task_id, uint64_t epoch, std::vector<int> gpus = {}) {
  v1::Assignment assignment;
  assignment.mutable_ref()->set_task_id(task_id);
  assignment.mutable_ref()->set_epoch(epoch);
  for (const int gpu : gpus) assignment.add_gpu_indices(gpu);
  return assignment;
}

std::vector<std::string> Names(const std::vector<v1::Assignment>& assignments) {
  std::vector<std::string> names;
  for (const v1::Assignment& assignment : assignments) names.push_back(NameOf(KeyOf(assignment.ref())));
  return names;
}

using Strings = std::vector<std::string>;

TEST(Reconcile, StartsWhatIsMissingAndStopsWhatIsExtra) {
  const ReconcilePlan plan = Reconcile({Assign("a", 1), Assign("b", 2)}, {{.key = {"b", 2}}, {.key = {"c", 3}}}, {});
  EXPECT_EQ(Names(plan.start), Strings({"a.1"}));
  EXPECT_EQ(plan.stop, std::vector<TaskKey>({{"c", 3}}));
}

TEST(Reconcile, AnEndedPlacementIsNotRunAgain) {
  const ReconcilePlan plan = Reconcile({Assign("a", 1)}, {}, {{"a", 1}, {"b", 1}});
  EXPECT_TRUE(plan.start.empty());
  EXPECT_EQ(plan.forget, std::vector<TaskKey>({{"b", 1}}));
}

TEST(Reconcile, ANewPlacementWaitsForTheOldOneToGo) {
  const std::vector<v1::Assignment> wanted = {Assign("a", 2)};
  const ReconcilePlan first = Reconcile(wanted, {{.key = {"a", 1}}}, {});
  EXPECT_TRUE(first.start.empty());
  EXPECT_EQ(first.stop, std::vector<TaskKey>({{"a", 1}}));
  const ReconcilePlan second = Reconcile(wanted, {{.key = {"a", 1}, .stopping = true}}, {});
  EXPECT_TRUE(second.start.empty());
  EXPECT_TRUE(second.stop.empty());
  EXPECT_EQ(Names(Reconcile(wanted, {}, {{"a", 1}}).start), Strings({"a.2"}));
}

TEST(Reconcile, AGpuIsFreeWhenItsProcessIsGone) {
  const std::vector<v1::Assignment> wanted = {Assign("b", 2, {0, 1})};
  EXPECT_TRUE(Reconcile(wanted, {{.key = {"a", 1}, .gpu_indices = {1}, .stopping = true}}, {}).start.empty());
  EXPECT_EQ(Names(Reconcile(wanted, {{.key = {"a", 1}, .gpu_indices = {2}, .stopping = true}}, {}).start),
            Strings({"b.2"}));
}

// Whatever the coordinator says and whenever processes end, the worker comes to run exactly what is assigned, and no
// placement twice.
TEST(Reconcile, ConvergesFromAnyState) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    std::vector<v1::Assignment> assignments;
    std::vector<RunningView> running;
    std::set<TaskKey> ended;
    std::set<TaskKey> started;
    uint64_t epoch = 0;
    const auto apply = [&] {
      const ReconcilePlan plan = Reconcile(assignments, running, ended);
      for (const TaskKey& key : plan.stop) {
        for (RunningView& view : running) view.stopping = view.stopping || view.key == key;
      }
      for (const TaskKey& key : plan.forget) ended.erase(key);
      for (const v1::Assignment& assignment : plan.start) {
        EXPECT_TRUE(started.insert(KeyOf(assignment.ref())).second) << "seed " << seed;
        running.push_back({.key = KeyOf(assignment.ref()),
                           .gpu_indices = {assignment.gpu_indices().begin(), assignment.gpu_indices().end()}});
      }
    };
    const auto end_one = [&](size_t index) {
      ended.insert(running[index].key);
      running.erase(running.begin() + static_cast<ptrdiff_t>(index));
    };
    for (int turn = 0; turn < 30; ++turn) {
      if (random() % 2 == 0) {
        assignments.clear();
        for (int i = 0; i < static_cast<int>(random() % 4); ++i)
          assignments.push_back(Assign(absl::StrCat("t", i), ++epoch, {i}));
      } else if (!running.empty()) {
        end_one(random() % running.size());
      }
      apply();
    }
    for (int turn = 0; turn < 100; ++turn) {
      for (size_t i = running.size(); i-- > 0;) {
        if (running[i].stopping) end_one(i);
      }
      apply();
    }
    std::set<TaskKey> runs;
    for (const RunningView& view : running) runs.insert(view.key);
    for (const v1::Assignment& assignment : assignments) {
      EXPECT_TRUE(runs.count(KeyOf(assignment.ref())) + ended.count(KeyOf(assignment.ref())) == 1) << "seed " << seed;
    }
    EXPECT_LE(runs.size(), assignments.size()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace retort::worker
