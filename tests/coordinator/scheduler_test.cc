#include "coordinator/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"

namespace retort {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

const absl::Time kNow = absl::FromUnixSeconds(1'000'000);

WorkerView Worker(const std::string& id, int cpu, int gpus = 0) {
  WorkerView worker;
  worker.worker_id = id;
  worker.cpu_slots_total = worker.cpu_slots_free = cpu;
  worker.gpus_total = gpus;
  for (int i = 0; i < gpus; ++i) worker.gpus_free.push_back(i);
  return worker;
}

GroupView Group(const std::string& job, GroupKind kind, int min, int max, uint64_t sequence = 1) {
  GroupView group;
  group.job_id = job;
  group.kind = kind;
  group.min = min;
  group.sequence = sequence;
  for (int i = 0; i < max; ++i) {
    TaskView task;
    task.task_id = absl::StrCat(job, ".x.0.", i);
    group.waiting.push_back(task);
  }
  return group;
}

TEST(Schedule, PlacesATaskOnAFreeSlot) {
  const Plan plan = Schedule({7, {Worker("w", 1)}, {Group("a", GroupKind::kSeparate, 1, 1)}}, kNow);
  EXPECT_EQ(plan.version, 7u);
  ASSERT_THAT(plan.placements, SizeIs(1));
  EXPECT_EQ(plan.placements[0].worker_id, "w");
  EXPECT_FALSE(plan.placements[0].gpu_index.has_value());
  EXPECT_THAT(plan.wait_reasons, IsEmpty());
}

TEST(Schedule, SaysWhyATaskWaits) {
  const auto reason = [](const Snapshot& snapshot) { return Schedule(snapshot, kNow).wait_reasons.begin()->second; };
  EXPECT_EQ(reason({1, {}, {Group("a", GroupKind::kSeparate, 1, 1)}}), "no worker has registered");
  EXPECT_EQ(reason({1, {Worker("w", 4)}, {Group("a", GroupKind::kGang, 5, 5)}}),
            "needs 5 cpu slots at once, all workers together have 4");
  WorkerView busy = Worker("w", 4);
  busy.cpu_slots_free = 1;
  EXPECT_EQ(reason({1, {busy}, {Group("a", GroupKind::kGang, 2, 2)}}), "needs 2 cpu slots at once, 1 free of 4");
  GroupView gpu = Group("a", GroupKind::kSeparate, 1, 1);
  gpu.device = Device::kCuda;
  EXPECT_EQ(reason({1, {Worker("w", 4)}, {gpu}}), "needs 1 gpu, the workers have none");
  GroupView backing_off = Group("a", GroupKind::kSeparate, 1, 1);
  backing_off.waiting[0].not_before = kNow + absl::Milliseconds(350);
  EXPECT_EQ(reason({1, {Worker("w", 4)}, {backing_off}}), "tried again in 400ms after a failure");
  EXPECT_THAT(Schedule({1, {Worker("w", 1)}, {Group("a", GroupKind::kGang, 1, 2)}}, kNow).wait_reasons["a.x.0.1"],
              HasSubstr("needs 1 cpu slot"));
}

TEST(Schedule, WhatBeganOnAGpuWaitsForOne) {
  GroupView group = Group("a", GroupKind::kGang, 1, 1);
  group.device = Device::kAuto;
  EXPECT_THAT(Schedule({1, {Worker("w", 4)}, {group}}, kNow).placements, SizeIs(1))
      << "one that has not begun does not";
  group.placed_on_gpu = true;
  const Plan plan = Schedule({1, {Worker("w", 4)}, {group}}, kNow);
  EXPECT_THAT(plan.placements, IsEmpty());
  EXPECT_THAT(plan.wait_reasons.at("a.x.0.0"), HasSubstr("it began on a GPU"));
  EXPECT_THAT(plan.wait_reasons.at("a.x.0.0"), HasSubstr("device: cpu"));
}

TEST(Schedule, GangIsAllOrNone) {
  EXPECT_THAT(Schedule({1, {Worker("w", 2)}, {Group("a", GroupKind::kGang, 3, 3)}}, kNow).placements, IsEmpty());
  EXPECT_THAT(Schedule({1, {Worker("v", 1), Worker("w", 2)}, {Group("a", GroupKind::kGang, 3, 3)}}, kNow).placements,
              SizeIs(3));
}

TEST(Schedule, GangStartsWithAllThatFits) {
  EXPECT_THAT(Schedule({1, {Worker("w", 3)}, {Group("a", GroupKind::kGang, 2, 8)}}, kNow).placements, SizeIs(3));
}

TEST(Schedule, GangGrowsOnlyWhenSettled) {
  GroupView gang = Group("a", GroupKind::kGang, 1, 2);
  gang.placed = 1;
  gang.placed_on_gpu = false;
  gang.stable_since = kNow - absl::Seconds(1);
  const Plan early = Schedule({1, {Worker("w", 2)}, {gang}}, kNow);
  EXPECT_THAT(early.placements, IsEmpty());
  EXPECT_EQ(early.wake_at, kNow + absl::Seconds(2));
  EXPECT_THAT(Schedule({1, {Worker("w", 2)}, {gang}}, kNow + absl::Seconds(2)).placements, SizeIs(2));
}

TEST(Schedule, DeadRankIsReplacedAtOnce) {
  GroupView gang = Group("a", GroupKind::kGang, 1, 1);
  gang.placed = 1;
  gang.placed_on_gpu = false;
  gang.stable_since = kNow;
  gang.waiting[0].was_placed = true;
  EXPECT_THAT(Schedule({1, {Worker("w", 2)}, {gang}}, kNow).placements, SizeIs(1));
}

TEST(Schedule, GangWaitsForTheRankThatBacksOff) {
  GroupView gang = Group("a", GroupKind::kGang, 2, 2);
  gang.waiting[1].not_before = kNow + absl::Seconds(1);
  const Plan plan = Schedule({1, {Worker("w", 2)}, {gang}}, kNow);
  EXPECT_THAT(plan.placements, IsEmpty());
  EXPECT_EQ(plan.wake_at, kNow + absl::Seconds(1));
  EXPECT_THAT(Schedule({1, {Worker("w", 2)}, {gang}}, kNow + absl::Seconds(1)).placements, SizeIs(2));
}

TEST(Schedule, AutoPrefersGpusAndDoesNotMix) {
  GroupView gang = Group("a", GroupKind::kGang, 1, 3);
  gang.device = Device::kAuto;
  Plan plan = Schedule({1, {Worker("w", 4, 2)}, {gang}}, kNow);
  ASSERT_THAT(plan.placements, SizeIs(2));
  EXPECT_NE(plan.placements[0].gpu_index, plan.placements[1].gpu_index);
  gang.placed = 1;
  gang.placed_on_gpu = false;
  plan = Schedule({1, {Worker("w", 4, 2)}, {gang}}, kNow);
  ASSERT_THAT(plan.placements, SizeIs(3));
  EXPECT_FALSE(plan.placements[0].gpu_index.has_value());
}

TEST(Schedule, PriorityThenOrderOfSubmission) {
  GroupView first = Group("a", GroupKind::kSeparate, 1, 1, 1);
  GroupView second = Group("b", GroupKind::kSeparate, 1, 1, 2);
  GroupView urgent = Group("c", GroupKind::kSeparate, 1, 1, 3);
  urgent.priority = 5;
  const auto winner = [](const std::vector<GroupView>& groups) {
    return Schedule({1, {Worker("w", 1)}, groups}, kNow).placements[0].task_id;
  };
  EXPECT_EQ(winner({second, first}), "a.x.0.0");
  EXPECT_EQ(winner({second, first, urgent}), "c.x.0.0");
}

TEST(Schedule, OptionalReplicasComeAfterWhatOthersMustHave) {
  const Plan plan = Schedule(
      {1, {Worker("w", 2)}, {Group("a", GroupKind::kReplicas, 1, 4, 1), Group("b", GroupKind::kSeparate, 1, 1, 2)}},
      kNow);
  std::set<std::string> placed;
  for (const Placement& placement : plan.placements) placed.insert(placement.task_id);
  EXPECT_EQ(placed, (std::set<std::string>{"a.x.0.0", "b.x.0.0"}));
}

TEST(Schedule, SmallTasksDoNotOvertakeAWaitingGang) {
  WorkerView worker = Worker("w", 4);
  worker.cpu_slots_free = 3;
  const Plan plan = Schedule(
      {1, {worker}, {Group("gang", GroupKind::kGang, 4, 4, 1), Group("small", GroupKind::kSeparate, 1, 1, 2)}}, kNow);
  EXPECT_THAT(plan.placements, IsEmpty());
  EXPECT_THAT(plan.wait_reasons.at("small.x.0.0"), HasSubstr("kept for a job"));
}

TEST(Schedule, AGangThatCanNeverFitBlocksNobody) {
  const Plan plan = Schedule(
      {1, {Worker("w", 4)}, {Group("gang", GroupKind::kGang, 5, 5, 1), Group("small", GroupKind::kSeparate, 1, 1, 2)}},
      kNow);
  ASSERT_THAT(plan.placements, SizeIs(1));
  EXPECT_EQ(plan.placements[0].task_id, "small.x.0.0");
}

TEST(Schedule, SuspectWorkersGetNothingNew) {
  WorkerView suspect = Worker("w", 4);
  suspect.schedulable = false;
  EXPECT_THAT(Schedule({1, {suspect}, {Group("a", GroupKind::kSeparate, 1, 1)}}, kNow).placements, IsEmpty());
}

TEST(Schedule, AvoidsWhereTheTaskFailedIfItCan) {
  GroupView group = Group("a", GroupKind::kSeparate, 1, 1);
  group.waiting[0].avoid_worker = "w1";
  EXPECT_EQ(Schedule({1, {Worker("w1", 8), Worker("w2", 1)}, {group}}, kNow).placements[0].worker_id, "w2");
  EXPECT_EQ(Schedule({1, {Worker("w1", 8)}, {group}}, kNow).placements[0].worker_id, "w1");
}

// Random clusters and groups; what must hold of every plan.
class RandomSchedule : public ::testing::TestWithParam<int> {
 protected:
  int Draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  Snapshot DrawSnapshot() {
    Snapshot snapshot;
    const int workers = Draw(0, 4);
    for (int i = 0; i < workers; ++i) {
      WorkerView worker = Worker(absl::StrCat("w", i), Draw(0, 5), Draw(0, 3));
      worker.cpu_slots_free = Draw(0, worker.cpu_slots_total);
      while (!worker.gpus_free.empty() && Draw(0, 2) == 0) worker.gpus_free.pop_back();
      worker.schedulable = Draw(0, 4) > 0;
      snapshot.workers.push_back(worker);
    }
    const int groups = Draw(0, 6);
    for (int i = 0; i < groups; ++i) {
      const int max = Draw(1, 5);
      GroupView group =
          Group(absl::StrCat("j", i), static_cast<GroupKind>(Draw(0, 2)), Draw(1, max), max, static_cast<uint64_t>(i));
      if (group.kind == GroupKind::kSeparate) group.min = max;
      group.priority = Draw(-1, 1);
      group.device = static_cast<Device>(Draw(0, 2));
      if (Draw(0, 2) == 0) {
        group.placed = Draw(1, max);
        group.waiting.erase(group.waiting.begin(), group.waiting.begin() + group.placed);
        group.placed_on_gpu = Draw(0, 1) == 1;
      }
      group.stable_since = kNow - absl::Seconds(Draw(0, 5));
      for (TaskView& task : group.waiting) {
        task.was_placed = Draw(0, 1) == 1;
        if (Draw(0, 5) == 0) task.not_before = kNow + absl::Seconds(Draw(0, 2));
      }
      snapshot.groups.push_back(group);
    }
    return snapshot;
  }

  std::mt19937 random_{static_cast<uint32_t>(GetParam())};
};

TEST_P(RandomSchedule, NeverOverCommitsAndKeepsGangsWhole) {
  for (int round = 0; round < 300; ++round) {
    const Snapshot snapshot = DrawSnapshot();
    const Plan plan = Schedule(snapshot, kNow);
    SCOPED_TRACE(absl::StrCat("seed ", GetParam(), " round ", round));
    std::map<std::string, int> cpu;
    std::set<std::pair<std::string, int>> gpus;
    std::set<std::string> tasks;
    for (const Placement& placement : plan.placements) {
      EXPECT_TRUE(tasks.insert(placement.task_id).second) << "placed twice";
      const auto worker = std::find_if(snapshot.workers.begin(), snapshot.workers.end(),
                                       [&](const WorkerView& view) { return view.worker_id == placement.worker_id; });
      ASSERT_NE(worker, snapshot.workers.end());
      EXPECT_TRUE(worker->schedulable);
      if (placement.gpu_index.has_value()) {
        EXPECT_TRUE(gpus.emplace(placement.worker_id, *placement.gpu_index).second);
        EXPECT_EQ(std::count(worker->gpus_free.begin(), worker->gpus_free.end(), *placement.gpu_index), 1);
      } else {
        EXPECT_LE(++cpu[placement.worker_id], worker->cpu_slots_free);
      }
    }
    for (const GroupView& group : snapshot.groups) {
      int placed = 0;
      std::set<bool> on_gpu;
      for (const TaskView& task : group.waiting) {
        const bool is_placed = tasks.count(task.task_id) > 0;
        placed += is_placed;
        if (is_placed) {
          EXPECT_LE(task.not_before, kNow);
        }
        EXPECT_NE(is_placed, plan.wait_reasons.count(task.task_id) > 0)
            << task.task_id << " must be placed or told why not";
      }
      for (const Placement& placement : plan.placements) {
        if (placement.task_id.rfind(group.job_id + ".", 0) == 0) on_gpu.insert(placement.gpu_index.has_value());
      }
      EXPECT_LE(on_gpu.size(), 1u) << "a group is on one kind of device";
      if (group.kind == GroupKind::kGang && group.placed == 0 && placed > 0) {
        EXPECT_GE(placed, group.min);
      }
    }
  }
}

// Jobs come and run for a while; whoever could ever run does in the end.
TEST_P(RandomSchedule, NobodyStarves) {
  const int slots = 4;
  struct RunningTask {
    std::string job_id;
    int left;
  };
  std::vector<GroupView> waiting;
  std::vector<RunningTask> running;
  std::map<std::string, int> submitted_at;
  for (int round = 0; round < 400; ++round) {
    if (round < 200) {  // more than fits, mostly small
      const int size = Draw(0, 9) == 0 ? 4 : 1;
      GroupView group = Group(absl::StrCat("r", round), GroupKind::kGang, size, size, static_cast<uint64_t>(round));
      submitted_at[group.job_id] = round;
      waiting.push_back(group);
    }
    WorkerView worker = Worker("w", slots);
    worker.cpu_slots_free = slots - static_cast<int>(running.size());
    const Plan plan = Schedule({1, {worker}, waiting}, kNow);
    std::set<std::string> started;
    for (const Placement& placement : plan.placements) {
      const std::string job_id = placement.task_id.substr(0, placement.task_id.find('.'));
      started.insert(job_id);
      running.push_back({job_id, Draw(1, 2)});
    }
    ASSERT_LE(running.size(), static_cast<size_t>(slots));
    // A job is never started before an older one that waits: equal priorities are served in order.
    for (const GroupView& group : waiting) {
      if (started.count(group.job_id) > 0) continue;
      for (const std::string& job_id : started) EXPECT_LT(submitted_at[job_id], submitted_at[group.job_id]);
    }
    waiting.erase(std::remove_if(waiting.begin(), waiting.end(),
                                 [&](const GroupView& group) { return started.count(group.job_id) > 0; }),
                  waiting.end());
    for (RunningTask& task : running) --task.left;
    running.erase(
        std::remove_if(running.begin(), running.end(), [](const RunningTask& task) { return task.left <= 0; }),
        running.end());
  }
  EXPECT_THAT(waiting, IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomSchedule, ::testing::Range(1, 9));

}  // namespace
}  // namespace retort
