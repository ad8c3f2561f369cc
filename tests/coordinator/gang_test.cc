// Rendezvous: deaths, replacements, lost answers, restarts, growth.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/hash.h"
#include "tests/coordinator/harness.h"

namespace retort {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

const auto kNeverCancelled = [] { return false; };

class GangTest : public ::testing::Test {
 protected:
  void StartJob(int min_ranks, int max_ranks, int slots) {
    cluster_.StartWorker("w", slots);
    job_id_ = cluster_.Submit(TrainSpec(min_ranks, max_ranks));
  }
  std::string Rank(int replica) const { return absl::StrCat(job_id_, ".train.0.", replica); }

  // Joins without waiting; the answer is there when the gang has formed already.
  absl::StatusOr<v1::JoinGangResponse> Join(int replica, int64_t steps, uint64_t last_generation) {
    return Join(cluster_.RunningRef(Rank(replica)), steps, last_generation);
  }
  absl::StatusOr<v1::JoinGangResponse> Join(const v1::TaskRef& ref, int64_t steps, uint64_t last_generation) {
    v1::JoinGangRequest request;
    *request.mutable_ref() = ref;
    request.set_address(absl::StrCat("127.0.0.1:", 1000 + ref.epoch() % 60000));
    request.set_completed_steps(steps);
    request.set_last_generation(last_generation);
    return cluster_.core().JoinGang(request, absl::ZeroDuration(), kNeverCancelled);
  }
  uint64_t WantedGeneration(int replica, int64_t done = 0) {
    v1::ReportProgressRequest request;
    *request.mutable_ref() = cluster_.RunningRef(Rank(replica));
    request.mutable_progress()->set_done(done);
    request.mutable_progress()->set_unit("steps");
    const auto wanted = cluster_.core().ReportProgress(request);
    EXPECT_TRUE(wanted.ok()) << wanted.status();
    return wanted.ok() ? *wanted : 0;
  }
  // All of the ranks join; returns the generation.
  uint64_t FormWith(const std::vector<int>& replicas, uint64_t last_generation) {
    uint64_t generation = 0;
    for (size_t i = 0; i < replicas.size(); ++i) Join(replicas[i], 0, last_generation).IgnoreError();
    for (const int replica : replicas) {
      const auto answer = Join(replica, 0, last_generation);
      EXPECT_TRUE(answer.ok()) << answer.status();
      if (!answer.ok()) return 0;
      EXPECT_TRUE(generation == 0 || generation == answer->generation());
      EXPECT_EQ(answer->members_size(), static_cast<int>(replicas.size()));
      generation = answer->generation();
    }
    return generation;
  }

  Harness cluster_;
  std::string job_id_;
};

TEST_F(GangTest, AllRanksGetOneMembership) {
  StartJob(3, 3, 4);
  EXPECT_EQ(Join(0, -1, 0).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(Join(2, 5, 0).status().code(), absl::StatusCode::kDeadlineExceeded);
  const auto last = Join(1, 5, 0);
  ASSERT_TRUE(last.ok()) << last.status();
  const auto first = Join(0, -1, 0);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->generation(), last->generation());
  EXPECT_EQ(first->group_secret(), last->group_secret());
  EXPECT_THAT(first->group_secret(), SizeIs(32));
  EXPECT_EQ(first->rank(), 0);
  EXPECT_EQ(last->rank(), 1);
  ASSERT_EQ(first->members_size(), 3);
  EXPECT_EQ(first->members(0).completed_steps(), -1);
  EXPECT_EQ(first->members(2).completed_steps(), 5);
  EXPECT_EQ(first->members(1).ref().task_id(), Rank(1));
  EXPECT_EQ(WantedGeneration(0), first->generation());
}

TEST_F(GangTest, ReplacementMeetsTheSurvivorsInOneGeneration) {
  StartJob(2, 2, 4);
  const uint64_t first = FormWith({0, 1}, 0);
  cluster_.Exit(Rank(1), 0, 9);
  EXPECT_GT(WantedGeneration(0), first);
  EXPECT_EQ(Join(0, 7, first).status().code(), absl::StatusCode::kDeadlineExceeded) << "waits for the replacement";
  const auto replacement = Join(1, -1, 0);
  ASSERT_TRUE(replacement.ok()) << replacement.status();
  const auto survivor = Join(0, 7, first);
  ASSERT_TRUE(survivor.ok());
  EXPECT_EQ(survivor->generation(), replacement->generation());
  EXPECT_GT(survivor->generation(), first);
  EXPECT_EQ(survivor->members(0).completed_steps(), 7);
  EXPECT_EQ(survivor->members(1).completed_steps(), -1);
}

TEST_F(GangTest, ARankThatKeepsDyingDoesNotHoldUpTheOthers) {
  StartJob(1, 2, 2);
  uint64_t generation = FormWith({0, 1}, 0);
  cluster_.Exit(Rank(1), 0, 9);
  cluster_.Exit(Rank(1), 0, 9);  // the immediate retry dies too, the next one backs off
  cluster_.Advance(absl::Milliseconds(300));
  cluster_.Exit(Rank(1), 0, 9);
  cluster_.Advance(absl::Milliseconds(100));
  ASSERT_THAT(cluster_.Running(job_id_), SizeIs(1));
  EXPECT_FALSE(Join(0, 3, generation).ok()) << "the dead rank will be back in a moment";
  cluster_.Advance(absl::Seconds(14));
  const auto alone = Join(0, 3, generation);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->members_size(), 1);
}

TEST_F(GangTest, GangShrinksWhenNothingCanTakeTheDeadRank) {
  cluster_.StartWorker("w", 1);
  cluster_.StartWorker("v", 1);
  job_id_ = cluster_.Submit(TrainSpec(1, 2));
  const uint64_t first = FormWith({0, 1}, 0);
  const int survivor = cluster_.WorkerOf(Rank(0)) == "w" ? 0 : 1;
  cluster_.Silence("v");
  cluster_.Advance(absl::Seconds(10) + absl::Milliseconds(200));
  ASSERT_EQ(cluster_.core().Check(cluster_.RunningRef(Rank(1 - survivor))).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_GT(WantedGeneration(survivor, 1), first);
  EXPECT_FALSE(Join(survivor, 4, first).ok());
  cluster_.Advance(absl::Seconds(4));
  const auto alone = Join(survivor, 4, first);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->members_size(), 1);
}

TEST_F(GangTest, BelowMinTheGangWaits) {
  cluster_.StartWorker("w", 1);
  cluster_.StartWorker("v", 1);
  job_id_ = cluster_.Submit(TrainSpec(2, 2));
  const uint64_t first = FormWith({0, 1}, 0);
  const int survivor = cluster_.WorkerOf(Rank(0)) == "w" ? 0 : 1;
  cluster_.Silence("v");
  cluster_.Advance(absl::Seconds(20));
  EXPECT_EQ(Join(survivor, 4, first).status().code(), absl::StatusCode::kDeadlineExceeded);
  cluster_.StartWorker("v", 1);
  Join(1 - survivor, -1, 0).IgnoreError();
  EXPECT_TRUE(Join(survivor, 4, first).ok());
}

TEST_F(GangTest, ALostAnswerIsGivenAgain) {
  StartJob(2, 2, 4);
  Join(0, 0, 0).IgnoreError();
  const auto answer = Join(1, 0, 0);
  ASSERT_TRUE(answer.ok());
  const auto again = Join(1, 0, 0);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->generation(), answer->generation());
  EXPECT_EQ(again->group_secret(), answer->group_secret());
}

TEST_F(GangTest, ABrokenConnectionMakesAllJoinAgain) {
  StartJob(2, 2, 4);
  const uint64_t first = FormWith({0, 1}, 0);
  EXPECT_EQ(Join(0, 3, first).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GT(WantedGeneration(1), first) << "the other rank is told to come too";
  EXPECT_TRUE(Join(1, 3, first).ok());
  EXPECT_TRUE(Join(0, 3, first).ok());
}

TEST_F(GangTest, RestartLosesNoGang) {
  StartJob(2, 2, 4);
  const uint64_t first = FormWith({0, 1}, 0);
  cluster_.Restart();
  cluster_.Settle();
  EXPECT_EQ(WantedGeneration(0), 0u) << "ranks go on as they were";
  cluster_.Exit(Rank(1), 0, 9);
  EXPECT_GT(WantedGeneration(0), first);
  Join(0, 5, first).IgnoreError();
  const auto replacement = Join(1, -1, 0);
  ASSERT_TRUE(replacement.ok());
  EXPECT_GT(replacement->generation(), first);
}

TEST_F(GangTest, RestartWhileTheyWait) {
  StartJob(2, 2, 4);
  const uint64_t first = FormWith({0, 1}, 0);
  Join(0, 5, first).IgnoreError();
  cluster_.Restart();
  cluster_.Settle();
  EXPECT_EQ(Join(0, 5, first).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GT(WantedGeneration(1), first);
  EXPECT_TRUE(Join(1, 5, first).ok());
  EXPECT_TRUE(Join(0, 5, first).ok());
}

TEST_F(GangTest, FencedRanksAreRefused) {
  StartJob(2, 2, 4);
  const v1::TaskRef old = cluster_.RunningRef(Rank(1));
  cluster_.Exit(Rank(1), 0, 9);
  EXPECT_EQ(Join(old, 0, 0).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(GangTest, AHangingRankIsReplaced) {
  StartJob(2, 2, 4);
  const uint64_t first = FormWith({0, 1}, 0);
  const v1::TaskRef hanging = cluster_.RunningRef(Rank(1));
  Join(0, 3, first).IgnoreError();
  cluster_.Advance(absl::Seconds(59));
  EXPECT_TRUE(cluster_.core().Check(hanging).ok());
  cluster_.Advance(absl::Seconds(2));
  EXPECT_EQ(cluster_.core().Check(hanging).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_GT(cluster_.RunningRef(Rank(1)).epoch(), hanging.epoch());
  EXPECT_THAT(cluster_.Job(job_id_).stages(0).tasks(1).last_error(), HasSubstr("did not join"));
}

TEST_F(GangTest, ARankWhoseWholeProcessHangsIsReplacedToo) {
  StartJob(2, 2, 4);
  const uint64_t first = FormWith({0, 1}, 0);
  const v1::TaskRef hanging = cluster_.RunningRef(Rank(1));
  cluster_.Hang(Rank(1));
  cluster_.Advance(absl::Seconds(30));
  Join(0, 3, first).IgnoreError();  // its exchange has timed out
  cluster_.Advance(absl::Seconds(31));
  EXPECT_EQ(cluster_.core().Check(hanging).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(cluster_.Job(job_id_).stages(0).tasks(1).last_error(), HasSubstr("has not answered for 60s"));
}

TEST_F(GangTest, ARankThatStillStepsDoesNotHang) {
  StartJob(2, 2, 4);
  const uint64_t first = FormWith({0, 1}, 0);
  const v1::TaskRef slow = cluster_.RunningRef(Rank(1));
  Join(0, 3, first).IgnoreError();
  for (int step = 1; step < 5; ++step) {
    cluster_.Advance(absl::Seconds(40));
    WantedGeneration(1, step);
  }
  EXPECT_TRUE(cluster_.core().Check(slow).ok());
}

TEST_F(GangTest, GrowsWhenSlotsComeAndItHasSettled) {
  StartJob(1, 3, 1);
  ASSERT_THAT(cluster_.Running(job_id_), SizeIs(1));
  const uint64_t first = FormWith({0}, 0);
  cluster_.Advance(absl::Seconds(5));
  cluster_.StartWorker("v", 4);
  ASSERT_THAT(cluster_.Running(job_id_), SizeIs(3));
  EXPECT_EQ(WantedGeneration(0), first) << "nobody stops while the new ranks load";
  Join(1, -1, 0).IgnoreError();
  EXPECT_GT(WantedGeneration(0), first);
  const auto two = Join(0, 9, first);
  ASSERT_TRUE(two.ok()) << two.status();
  EXPECT_EQ(two->members_size(), 2) << "the third still loads";
  Join(2, -1, 0).IgnoreError();
  Join(0, 12, two->generation()).IgnoreError();
  const auto three = Join(1, 12, two->generation());
  ASSERT_TRUE(three.ok()) << three.status();
  EXPECT_EQ(three->members_size(), 3);
}

TEST_F(GangTest, AGrowingRankThatDiesDisturbsNobody) {
  StartJob(1, 2, 1);
  const uint64_t first = FormWith({0}, 0);
  cluster_.Advance(absl::Seconds(5));
  cluster_.StartWorker("v", 1);
  ASSERT_THAT(cluster_.Running(job_id_), SizeIs(2));
  cluster_.Exit(Rank(1), 0, 9);
  EXPECT_EQ(WantedGeneration(0), first);
}

TEST_F(GangTest, AReplacementThatLoadsForLongIsTakenInLater) {
  StartJob(1, 2, 2);
  const uint64_t first = FormWith({0, 1}, 0);
  cluster_.Exit(Rank(1), 0, 9);
  ASSERT_THAT(cluster_.Running(job_id_), SizeIs(2));
  EXPECT_FALSE(Join(0, 5, first).ok());
  cluster_.Advance(absl::Seconds(11));
  const auto alone = Join(0, 5, first);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->members_size(), 1);
  Join(1, -1, 0).IgnoreError();
  const auto both = Join(0, 8, alone->generation());
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ(both->members_size(), 2);
}

TEST_F(GangTest, TheStageEndsWithOneFinalResult) {
  StartJob(2, 2, 4);
  FormWith({0, 1}, 0);
  // Rank 1 completes first and has nothing to show.
  const v1::TaskRef other = cluster_.RunningRef(Rank(1));
  ASSERT_TRUE(cluster_.core().CompleteTask(other, {}).ok());
  cluster_.Exit(Rank(1), 0);
  EXPECT_EQ(cluster_.Job(job_id_).state(), v1::JOB_STATE_RUNNING);
  EXPECT_THAT(cluster_.Running(job_id_), SizeIs(1)) << "it is not placed again";
  cluster_.Complete(cluster_.RunningRef(Rank(0)));
  EXPECT_EQ(cluster_.Job(job_id_).state(), v1::JOB_STATE_SUCCEEDED);
}

TEST_F(GangTest, ARankThatDiesAfterTheFinalResultIsNotNeeded) {
  StartJob(2, 2, 4);
  FormWith({0, 1}, 0);
  cluster_.Complete(cluster_.RunningRef(Rank(0)));
  EXPECT_EQ(cluster_.Job(job_id_).state(), v1::JOB_STATE_RUNNING) << "rank 1 has a moment to complete";
  cluster_.Exit(Rank(1), 0, 9);
  const v1::Job job = cluster_.Job(job_id_);
  EXPECT_EQ(job.state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(job.stages(0).tasks(1).state(), v1::TASK_STATE_CANCELLED);
}

TEST_F(GangTest, RankZeroDeadAfterTheOthersCompletedTrainsOnAlone) {
  StartJob(2, 2, 4);
  FormWith({0, 1}, 0);
  ASSERT_TRUE(cluster_.core().CompleteTask(cluster_.RunningRef(Rank(1)), {}).ok());
  cluster_.Exit(Rank(1), 0);
  cluster_.Exit(Rank(0), 0, 9);
  ASSERT_THAT(cluster_.Running(job_id_), SizeIs(1));
  const auto alone = Join(0, -1, 0);
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->members_size(), 1);
}

TEST_F(GangTest, RanksThatFailTogetherAreChargedOnce) {
  StartJob(2, 2, 4);  // tolerates 3 failures
  for (int round = 0; round < 3; ++round) {
    cluster_.Exit(Rank(0), 0, 6);
    cluster_.Exit(Rank(1), 0, 6);
    cluster_.Advance(absl::Seconds(11));
  }
  EXPECT_EQ(cluster_.Job(job_id_).state(), v1::JOB_STATE_RUNNING);
  cluster_.Exit(Rank(0), 0, 6);
  EXPECT_EQ(cluster_.Job(job_id_).state(), v1::JOB_STATE_FAILED);
}

class CheckpointTest : public GangTest {
 protected:
  v1::Checkpoint CheckpointAt(int64_t step, double scale) {
    v1::Checkpoint checkpoint;
    checkpoint.set_step(step);
    checkpoint.set_artifact_id(Sha256Hex(absl::StrCat("checkpoint-", step)));
    for (int64_t i = 1; i <= step; ++i) {
      v1::LossPoint& point = *checkpoint.add_losses();
      point.set_step(i);
      point.set_loss(scale * static_cast<double>(i));
    }
    return checkpoint;
  }
  void Report(int64_t step, double loss) {
    v1::ReportProgressRequest request;
    *request.mutable_ref() = cluster_.RunningRef(Rank(0));
    v1::LossPoint& point = *request.add_new_losses();
    point.set_step(step);
    point.set_loss(loss);
    ASSERT_TRUE(cluster_.core().ReportProgress(request).ok());
  }
};

TEST_F(CheckpointTest, TheNewestIsWhereARestartedRankResumes) {
  StartJob(1, 1, 2);
  EXPECT_FALSE(cluster_.core().GetTask(cluster_.RunningRef(Rank(0)))->train().has_resume_from());
  ASSERT_TRUE(cluster_.core().RegisterCheckpoint(cluster_.RunningRef(Rank(0)), CheckpointAt(4, 1), 100).ok());
  ASSERT_TRUE(cluster_.core().RegisterCheckpoint(cluster_.RunningRef(Rank(0)), CheckpointAt(2, 9), 100).ok());
  cluster_.Restart();
  cluster_.Settle();
  cluster_.Exit(Rank(0), 0, 9);
  const auto task = cluster_.core().GetTask(cluster_.RunningRef(Rank(0)));
  ASSERT_TRUE(task.ok());
  EXPECT_EQ(task->train().resume_from().step(), 4);
  ASSERT_EQ(task->train().resume_from().losses_size(), 4);
  EXPECT_EQ(task->train().resume_from().losses(3).loss(), 4.0);
  EXPECT_EQ(cluster_.Job(job_id_).result().artifacts(0).name(), "checkpoint-4");
}

TEST_F(CheckpointTest, StepsDoneAgainReplaceTheirLosses) {
  StartJob(1, 1, 2);
  for (int64_t step = 1; step <= 6; ++step) Report(step, 100.0 + static_cast<double>(step));
  ASSERT_TRUE(cluster_.core().RegisterCheckpoint(cluster_.RunningRef(Rank(0)), CheckpointAt(4, 1), 1).ok());
  cluster_.Exit(Rank(0), 0, 9);
  for (int64_t step = 5; step <= 8; ++step) Report(step, 200.0 + static_cast<double>(step));
  const v1::Job job = cluster_.Job(job_id_);
  ASSERT_EQ(job.result().losses_size(), 8);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(job.result().losses(i).step(), i + 1);
  EXPECT_EQ(job.result().losses(3).loss(), 4.0);
  EXPECT_EQ(job.result().losses(4).loss(), 205.0);
}

TEST_F(CheckpointTest, ProgressRefillsTheBudget) {
  StartJob(1, 1, 2);
  for (int64_t step = 1; step <= 8; ++step) {
    ASSERT_TRUE(cluster_.core().RegisterCheckpoint(cluster_.RunningRef(Rank(0)), CheckpointAt(step, 1), 1).ok());
    cluster_.Exit(Rank(0), 0, 9);
    cluster_.Advance(absl::Seconds(2));
  }
  EXPECT_EQ(cluster_.Job(job_id_).state(), v1::JOB_STATE_RUNNING);
}

TEST_F(CheckpointTest, StepsRefillTheBudgetButOnlyNewOnes) {
  StartJob(1, 1, 2);  // tolerates 3 failures
  for (int64_t step = 1; step <= 8; ++step) {
    WantedGeneration(0, step);
    cluster_.Exit(Rank(0), 0, 9);
    cluster_.Advance(absl::Seconds(2));
  }
  EXPECT_EQ(cluster_.Job(job_id_).state(), v1::JOB_STATE_RUNNING);
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(cluster_.Job(job_id_).state(), v1::JOB_STATE_RUNNING) << i;
    WantedGeneration(0, 3);
    WantedGeneration(0, 8);
    cluster_.Exit(Rank(0), 0, 9);
    cluster_.Restart();
    cluster_.Advance(absl::Seconds(11));
  }
  EXPECT_EQ(cluster_.Job(job_id_).state(), v1::JOB_STATE_FAILED);
  EXPECT_THAT(cluster_.Job(job_id_).message(), HasSubstr("without progress"));
}

TEST_F(CheckpointTest, ADamagedOneGivesWayToTheOneBefore) {
  StartJob(1, 1, 2);
  for (const int64_t step : {2, 4, 6}) {
    ASSERT_TRUE(cluster_.core().RegisterCheckpoint(cluster_.RunningRef(Rank(0)), CheckpointAt(step, 1), 1).ok());
  }
  const auto fail = [&](int64_t step) {
    const v1::TaskRef ref = cluster_.RunningRef(Rank(0));
    ASSERT_TRUE(cluster_.core()
                    .FailTask(ref, v1::FAILURE_CAUSE_INFRASTRUCTURE, "hash", CheckpointAt(step, 1).artifact_id())
                    .ok());
    cluster_.Restart();
    cluster_.Advance(absl::Seconds(11));
  };
  fail(6);
  fail(6);  // another rank says the same: nothing more is lost
  auto task = cluster_.core().GetTask(cluster_.RunningRef(Rank(0)));
  ASSERT_TRUE(task.ok());
  EXPECT_EQ(task->train().resume_from().step(), 4);
  EXPECT_EQ(task->train().resume_from().artifact_id(), CheckpointAt(4, 1).artifact_id());
  EXPECT_EQ(task->train().resume_from().losses_size(), 4);
  EXPECT_EQ(cluster_.Job(job_id_).result().artifacts_size(), 2);
  EXPECT_EQ(cluster_.Job(job_id_).result().losses_size(), 4);
  ASSERT_TRUE(cluster_.core().RegisterCheckpoint(cluster_.RunningRef(Rank(0)), CheckpointAt(6, 1), 1).ok());
  EXPECT_EQ(cluster_.core().GetTask(cluster_.RunningRef(Rank(0)))->train().resume_from().step(), 6);
  fail(6);
  EXPECT_EQ(cluster_.Job(job_id_).state(), v1::JOB_STATE_RUNNING);
  fail(4);
  EXPECT_EQ(cluster_.Job(job_id_).state(), v1::JOB_STATE_FAILED)
      << "a checkpoint that is made again is no progress: the budget of 3 is spent";
}

TEST_F(CheckpointTest, WithNoneLeftTheTrainingBeginsAnew) {
  StartJob(1, 1, 2);
  ASSERT_TRUE(cluster_.core().RegisterCheckpoint(cluster_.RunningRef(Rank(0)), CheckpointAt(4, 1), 1).ok());
  ASSERT_TRUE(cluster_.core()
                  .FailTask(cluster_.RunningRef(Rank(0)), v1::FAILURE_CAUSE_INFRASTRUCTURE, "hash",
                            CheckpointAt(4, 1).artifact_id())
                  .ok());
  cluster_.Settle();
  const auto task = cluster_.core().GetTask(cluster_.RunningRef(Rank(0)));
  ASSERT_TRUE(task.ok());
  EXPECT_FALSE(task->train().has_resume_from());
  EXPECT_EQ(cluster_.Job(job_id_).result().losses_size(), 0);
}

TEST_F(CheckpointTest, OfThoseMadeByTimeOnlyTheNewestTwoAreKept) {
  for (const int limit : {0, 1}) {
    v1::JobSpec spec = TrainSpec(1, 1);
    spec.mutable_student()->mutable_training()->set_save_total_limit(limit);
    if (limit == 0) cluster_.StartWorker("w", 2);
    job_id_ = cluster_.Submit(spec);
    for (int64_t step = 1; step <= 8; ++step) {
      v1::Checkpoint checkpoint = CheckpointAt(step, 1);
      checkpoint.set_rolling(step % 4 != 0);
      ASSERT_TRUE(cluster_.core().RegisterCheckpoint(cluster_.RunningRef(Rank(0)), checkpoint, 1).ok());
      // Where training would go on is never among those that leave.
      const auto live = cluster_.core().TakeLiveArtifacts();
      ASSERT_TRUE(live.ok()) << live.status();
      EXPECT_TRUE(live->artifacts.contains(checkpoint.artifact_id()));
      if (limit > 0) continue;  // the first job goes on naming what the second lets go
      for (const std::string& id : live->retired) EXPECT_FALSE(live->artifacts.contains(id));
    }
    cluster_.Restart();
    cluster_.Settle();
    std::vector<std::string> names;
    const v1::Job job = cluster_.Job(job_id_);
    for (const v1::JobArtifact& artifact : job.result().artifacts()) names.push_back(artifact.name());
    if (limit == 0) {
      EXPECT_THAT(names, ElementsAre("checkpoint-4", "checkpoint-6", "checkpoint-7", "checkpoint-8"));
    } else {
      EXPECT_THAT(names, ElementsAre("checkpoint-6", "checkpoint-7", "checkpoint-8"));
    }
    EXPECT_EQ(cluster_.core().GetTask(cluster_.RunningRef(Rank(0)))->train().resume_from().step(), 8);
    ASSERT_TRUE(cluster_.core().CancelJob(absl::StrCat("cancel-", limit), job_id_).ok());
    cluster_.Settle();
  }
}

TEST_F(CheckpointTest, OldCheckpointsLeaveTheListAtTheLimit) {
  v1::JobSpec spec = TrainSpec(1, 1);
  spec.mutable_student()->mutable_training()->set_save_total_limit(2);
  cluster_.StartWorker("w", 2);
  job_id_ = cluster_.Submit(spec);
  for (int64_t step = 1; step <= 5; ++step) {
    ASSERT_TRUE(cluster_.core().RegisterCheckpoint(cluster_.RunningRef(Rank(0)), CheckpointAt(step, 1), 1).ok());
  }
  const v1::Job job = cluster_.Job(job_id_);
  ASSERT_EQ(job.result().artifacts_size(), 2);
  EXPECT_EQ(job.result().artifacts(0).name(), "checkpoint-4");
  EXPECT_EQ(job.result().artifacts(1).name(), "checkpoint-5");
}

}  // namespace
}  // namespace retort
