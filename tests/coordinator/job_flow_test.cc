// Whole jobs through the core: every stage, restarts in between, failures of tasks, cancelling and resuming.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/hash.h"
#include "tests/coordinator/harness.h"

namespace retort {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

void ReportTraces(Harness* cluster, const std::string& task_id, int64_t done) {
  v1::ReportProgressRequest progress;
  *progress.mutable_ref() = cluster->RunningRef(task_id);
  progress.mutable_progress()->set_unit("traces");
  progress.mutable_progress()->set_done(done);
  ASSERT_TRUE(cluster->core().ReportProgress(progress).ok());
}

TEST(JobFlow, EveryStageToTheEnd) {
  Harness cluster;
  cluster.StartWorker("w", 4);
  const std::string job_id = cluster.Submit(FullSpec());
  EXPECT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_RUNNING);
  cluster.RunToEnd(job_id);
  const v1::Job job = cluster.Job(job_id);
  EXPECT_EQ(job.state(), v1::JOB_STATE_SUCCEEDED) << job.message();
  ASSERT_EQ(job.stages_size(), 5);
  for (const v1::StageStatus& stage : job.stages()) EXPECT_EQ(stage.state(), v1::STAGE_STATE_SUCCEEDED);
  EXPECT_EQ(job.stages(1).outcomes().counts().at("kept"), 7);
  EXPECT_EQ(job.result().losses_size(), 4);
  EXPECT_EQ(job.result().manifest_sha256(), Sha256Hex("manifest"));
  EXPECT_EQ(job.result().adapter_sha256(), Sha256Hex("adapter bytes"));
  ASSERT_EQ(job.result().evaluations_size(), 1);
  EXPECT_EQ(job.result().evaluations(0).student(), 0.8);
  std::set<std::string> artifacts;
  for (const v1::JobArtifact& artifact : job.result().artifacts()) artifacts.insert(artifact.name());
  EXPECT_EQ(artifacts, (std::set<std::string>{"adapter", "merged"}));
  EXPECT_TRUE(job.has_finished_at());
}

TEST(JobFlow, TracesAreCountedByTheStore) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  v1::SampleSetInfo info;
  info.set_sealed(true);
  info.set_prompt_count(30);
  info.set_n(2);
  info.set_trace_count(25);
  (*info.mutable_outcomes()->mutable_counts())["length"] = 25;
  cluster.sample_set() = info;
  const v1::Job job = cluster.Job(job_id);
  EXPECT_EQ(job.stages(0).progress().done(), 25);
  EXPECT_EQ(job.stages(0).progress().total(), 60);
  EXPECT_EQ(job.stages(0).outcomes().counts().at("length"), 25);
}

TEST(JobFlow, SurvivesARestartAfterEveryTask) {
  Harness cluster;
  cluster.StartWorker("w", 4);
  const std::string job_id = cluster.Submit(FullSpec());
  int restarts = 0;
  cluster.RunToEnd(job_id, [&] {
    cluster.Restart();
    ++restarts;
  });
  EXPECT_GE(restarts, 8);
  const v1::Job job = cluster.Job(job_id);
  EXPECT_EQ(job.state(), v1::JOB_STATE_SUCCEEDED) << job.message();
  EXPECT_EQ(job.result().losses_size(), 4);
  EXPECT_EQ(job.stages(0).outcomes().counts().at("stop"), 20) << "ten of each replica";
}

TEST(JobFlow, RunningTasksKeepTheirPlacementOverARestart) {
  Harness cluster;
  cluster.StartWorker("w", 4);
  const std::string job_id = cluster.Submit(TrainSpec(2, 2));
  const auto before = cluster.Running(job_id);
  ASSERT_THAT(before, SizeIs(2));
  ASSERT_TRUE(cluster.core().GetTask(before[0]).ok());
  cluster.Restart();
  EXPECT_TRUE(cluster.core().Check(before[0]).ok());
  cluster.Advance(absl::Seconds(15));
  const auto after = cluster.Running(job_id);
  ASSERT_THAT(after, SizeIs(2));
  EXPECT_EQ(after[0].epoch(), before[0].epoch());
  EXPECT_EQ(cluster.Job(job_id).stages(0).tasks(0).failures(), 0);
}

TEST(JobFlow, AnEndedJobIsToldToItsWatchersAfterARestart) {
  Harness cluster;
  cluster.StartWorker("w", 4);
  const std::string job_id = cluster.Submit(TrainSpec(1, 1));
  cluster.RunToEnd(job_id);
  cluster.Restart();
  const auto view = cluster.core().WaitJob(job_id, 0, absl::ZeroDuration(), [] { return false; });
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->job.state(), v1::JOB_STATE_SUCCEEDED);
}

TEST(JobFlow, NoLeaseExpiresUntilAFullTermAfterARestart) {
  Harness cluster;
  cluster.StartWorker("w", 4);
  const std::string job_id = cluster.Submit(TrainSpec(1, 1));
  const v1::TaskRef ref = cluster.Running(job_id)[0];
  cluster.Silence("w");
  cluster.Advance(absl::Seconds(9));
  cluster.Restart();
  cluster.Advance(absl::Seconds(9));
  EXPECT_TRUE(cluster.core().Check(ref).ok());
  cluster.Advance(absl::Seconds(2));
  EXPECT_EQ(cluster.core().Check(ref).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(JobFlow, ARequestSentTwiceMakesOneJobAlsoAfterARestart) {
  Harness cluster;
  const std::string first = cluster.Submit(TrainSpec(1, 1), "same");
  EXPECT_EQ(cluster.Submit(TrainSpec(1, 1), "same"), first);
  cluster.Restart();
  EXPECT_EQ(cluster.Submit(TrainSpec(1, 1), "same"), first);
  EXPECT_NE(cluster.Submit(TrainSpec(1, 1), "other"), first);
  EXPECT_THAT(*cluster.core().ListJobs(0), SizeIs(2));
}

TEST(JobFlow, EpochsRiseOverRestarts) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  uint64_t last = cluster.Running(job_id)[0].epoch();
  for (int i = 0; i < 3; ++i) {
    cluster.Restart();
    cluster.Settle();
    cluster.Exit(job_id + ".generate.0.0", 0, 9);
    cluster.Advance(absl::Seconds(1));
    const uint64_t epoch = cluster.RunningRef(job_id + ".generate.0.0").epoch();
    EXPECT_GT(epoch, last);
    last = epoch;
  }
}

TEST(JobFlow, OldPlacementsAreFenced) {
  Harness cluster;
  cluster.StartWorker("w", 2);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  const v1::TaskRef old = cluster.Running(job_id)[0];
  cluster.Exit(old.task_id(), 0, 9);
  const v1::TaskRef now = cluster.RunningRef(old.task_id());
  ASSERT_GT(now.epoch(), old.epoch());
  EXPECT_EQ(cluster.core().Check(old).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cluster.core().GetTask(old).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cluster.core().CompleteTask(old, {}).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cluster.core().FailTask(old, v1::FAILURE_CAUSE_USER_ERROR, "late").code(),
            absl::StatusCode::kFailedPrecondition);
  v1::ReportProgressRequest progress;
  *progress.mutable_ref() = old;
  EXPECT_EQ(cluster.core().ReportProgress(progress).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(cluster.core().Check(now).ok());
  EXPECT_THAT(cluster.released(), ::testing::Contains(PlacementKey(old.task_id(), old.epoch())));
  v1::TaskRef unknown;
  unknown.set_task_id("no.such.task.0");
  EXPECT_EQ(cluster.core().Check(unknown).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(JobFlow, UserErrorFailsTheJobWithItsMessage) {
  Harness cluster;
  cluster.StartWorker("w", 4);
  const std::string job_id = cluster.Submit(FullSpec());
  const v1::TaskRef ref = cluster.Running(job_id)[0];
  ASSERT_TRUE(cluster.core().FailTask(ref, v1::FAILURE_CAUSE_USER_ERROR, "/models/teacher: no config.json").ok());
  ASSERT_TRUE(
      cluster.core().FailTask(ref, v1::FAILURE_CAUSE_USER_ERROR, "/models/teacher: no config.json").ok());  // replay
  const v1::Job job = cluster.Job(job_id);
  EXPECT_EQ(job.state(), v1::JOB_STATE_FAILED);
  EXPECT_THAT(job.message(), HasSubstr("/models/teacher: no config.json"));
  EXPECT_EQ(job.stages(0).state(), v1::STAGE_STATE_FAILED);
  EXPECT_EQ(job.stages(1).state(), v1::STAGE_STATE_CANCELLED);
  cluster.Settle();
  EXPECT_THAT(cluster.Running(job_id), SizeIs(0));
}

TEST(JobFlow, KilledTaskIsRetriedAtOnceThenWithBackOff) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  const std::string task_id = job_id + ".generate.0.0";
  cluster.Exit(task_id, 0, 9);
  EXPECT_THAT(cluster.Running(job_id), SizeIs(1)) << "the first retry is immediate";
  cluster.Exit(task_id, 0, 11, "segfault somewhere");
  EXPECT_THAT(cluster.Running(job_id), SizeIs(0));
  const v1::Job job = cluster.Job(job_id);
  EXPECT_THAT(job.stages(0).tasks(0).wait_reason(), HasSubstr("after a failure"));
  EXPECT_EQ(job.stages(0).tasks(0).last_error(), "killed by signal 11 (SEGV): segfault somewhere");
  EXPECT_EQ(job.stages(0).tasks(0).failures(), 2);
  cluster.Advance(absl::Milliseconds(200));
  EXPECT_THAT(cluster.Running(job_id), SizeIs(1));
}

TEST(JobFlow, SpentBudgetFailsTheJobWithItsLastErrors) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));  // tolerates 3
  for (int i = 0; i < 4; ++i) {
    ASSERT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_RUNNING);
    cluster.Exit(job_id + ".generate.0.0", 5, 0, absl::StrCat("failure ", i));
    cluster.Advance(absl::Seconds(11));
  }
  const v1::Job job = cluster.Job(job_id);
  EXPECT_EQ(job.state(), v1::JOB_STATE_FAILED);
  EXPECT_THAT(job.message(), HasSubstr("failed 4 times"));
  EXPECT_THAT(job.message(), HasSubstr("failure 3"));
}

TEST(JobFlow, StoredTracesRefillTheBudget) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  for (int i = 0; i < 8; ++i) {
    ReportTraces(&cluster, job_id + ".generate.0.0", i + 1);
    cluster.Exit(job_id + ".generate.0.0", 0, 9);
    EXPECT_THAT(cluster.Running(job_id), SizeIs(1)) << "each is the first failure since progress";
  }
  EXPECT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_RUNNING);
}

TEST(JobFlow, EveryReplicasTracesRefillTheBudget) {
  Harness cluster;
  cluster.StartWorker("w", 2);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 2));
  for (int i = 0; i < 8; ++i) {
    ReportTraces(&cluster, job_id + ".generate.0.1", i + 1);
    cluster.Exit(job_id + ".generate.0.1", 0, 9);
    cluster.Advance(absl::Seconds(2));
  }
  EXPECT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_RUNNING);
  // What the other replica says is the same set's: no more than is known.
  for (int i = 0; i < 3; ++i) {
    ASSERT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_RUNNING) << i;
    ReportTraces(&cluster, job_id + ".generate.0.0", 8);
    cluster.Exit(job_id + ".generate.0.1", 0, 9);
    cluster.Advance(absl::Seconds(11));
  }
  EXPECT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_FAILED);
}

TEST(JobFlow, EvaluatedModelsMakeProgressEachByItself) {
  Harness cluster;
  cluster.StartWorker("w", 4);
  const std::string job_id = cluster.Submit(FullSpec());
  for (int i = 0; i < 50 && cluster.Job(job_id).stages(3).state() != v1::STAGE_STATE_RUNNING; ++i) {
    cluster.Complete(cluster.Running(job_id)[0]);
    cluster.Advance(absl::Seconds(3));
  }
  ASSERT_THAT(cluster.Running(job_id), SizeIs(3));
  for (int i = 0; i < 8; ++i) {
    ReportTraces(&cluster, job_id + ".evaluate.0.0", 100);
    ReportTraces(&cluster, job_id + ".evaluate.0.1", i + 1);
    cluster.Exit(job_id + ".evaluate.0.1", 0, 9);
    cluster.Advance(absl::Seconds(2));
    if (i == 3) cluster.Restart();
    cluster.Settle();
  }
  EXPECT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_RUNNING) << cluster.Job(job_id).message();
  EXPECT_EQ(cluster.Job(job_id).stages(3).progress().done(), 100) << "the sum; the dead one's is gone";
}

TEST(JobFlow, ExitWithoutAWordIsAnInfrastructureFailure) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  cluster.Exit(job_id + ".generate.0.0", 0);
  EXPECT_THAT(cluster.Job(job_id).stages(0).tasks(0).last_error(), HasSubstr("without having completed"));
  cluster.Exit(job_id + ".generate.0.0", 1, 0, "what(): boom");
  EXPECT_EQ(cluster.Job(job_id).stages(0).tasks(0).last_error(), "exited with code 1: what(): boom");
  EXPECT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_RUNNING);
}

TEST(JobFlow, CancelStopsTasksAndResumeGoesOnFromWhatIsFinished) {
  Harness cluster;
  cluster.StartWorker("w", 4);
  const std::string job_id = cluster.Submit(FullSpec());
  cluster.Complete(cluster.Running(job_id)[0]);
  cluster.Advance(absl::Seconds(3));
  ASSERT_EQ(cluster.Job(job_id).stages(0).state(), v1::STAGE_STATE_SUCCEEDED);
  const v1::TaskRef curate = cluster.Running(job_id)[0];
  ASSERT_EQ(*cluster.core().CancelJob("c1", job_id), v1::JOB_STATE_CANCELLED);
  ASSERT_EQ(*cluster.core().CancelJob("c1", job_id), v1::JOB_STATE_CANCELLED);
  cluster.Settle();
  EXPECT_THAT(cluster.Running(job_id), SizeIs(0));
  EXPECT_EQ(cluster.core().Check(curate).code(), absl::StatusCode::kFailedPrecondition);
  cluster.Restart();
  cluster.Settle();
  ASSERT_EQ(*cluster.core().ResumeJob("r1", "full"), v1::JOB_STATE_QUEUED);
  cluster.Settle();
  EXPECT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_RUNNING);
  ASSERT_EQ(*cluster.core().ResumeJob("r1", job_id), v1::JOB_STATE_RUNNING);
  const v1::Job resumed = cluster.Job(job_id);
  EXPECT_EQ(resumed.stages(0).state(), v1::STAGE_STATE_SUCCEEDED);
  cluster.RunToEnd(job_id);
  EXPECT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(cluster.core().ResumeJob("r2", job_id).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(JobFlow, FailedJobResumesWithAFullBudget) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  for (int i = 0; i < 4; ++i) {
    cluster.Exit(job_id + ".generate.0.0", 0, 9);
    cluster.Advance(absl::Seconds(11));
  }
  ASSERT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_FAILED);
  ASSERT_TRUE(cluster.core().ResumeJob("r", job_id).ok());
  cluster.Settle();
  EXPECT_TRUE(cluster.Job(job_id).message().empty());
  cluster.Exit(job_id + ".generate.0.0", 0, 9);
  cluster.RunToEnd(job_id);
  EXPECT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_SUCCEEDED);
}

TEST(JobFlow, JobsAreFoundByIdPrefixAndName) {
  Harness cluster;
  const std::string first = cluster.Submit(TrainSpec(1, 1));
  const std::string second = cluster.Submit(TrainSpec(1, 1));
  EXPECT_EQ(cluster.Job(first).job_id(), first);
  EXPECT_EQ(cluster.Job("train").job_id(), second);
  EXPECT_EQ(cluster.Job(first.substr(0, first.size() - 1)).job_id(), first);
  EXPECT_EQ(cluster.core().GetJob("train-").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cluster.core().GetJob("nothing").status().code(), absl::StatusCode::kNotFound);
}

TEST(JobFlow, ReplicasShareTheWorkAndTheFirstToFinishEndsIt) {
  Harness cluster;
  cluster.StartWorker("w", 4);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 3));
  ASSERT_THAT(cluster.Running(job_id), SizeIs(3));
  cluster.Complete(cluster.Running(job_id)[1]);
  cluster.Settle();
  EXPECT_EQ(cluster.Job(job_id).stages(0).state(), v1::STAGE_STATE_RUNNING)
      << "its peers have a moment to complete too";
  cluster.Advance(absl::Seconds(3));
  EXPECT_EQ(cluster.Job(job_id).stages(0).state(), v1::STAGE_STATE_SUCCEEDED);
  const auto running = cluster.Running(job_id);
  ASSERT_THAT(running, SizeIs(1));
  EXPECT_THAT(running[0].task_id(), HasSubstr(".curate."));
}

TEST(JobFlow, WaitReasonsAreShown) {
  Harness cluster;
  const std::string job_id = cluster.Submit(TrainSpec(2, 2));
  EXPECT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_QUEUED);
  EXPECT_EQ(cluster.Job(job_id).stages(0).tasks(0).wait_reason(), "no worker has registered");
  cluster.StartWorker("w", 1);
  EXPECT_EQ(cluster.Job(job_id).stages(0).tasks(0).wait_reason(),
            "needs 2 cpu slots at once, all workers together have 1");
  cluster.StartWorker("v", 1);
  EXPECT_THAT(cluster.Running(job_id), SizeIs(2));
  EXPECT_TRUE(cluster.Job(job_id).stages(0).tasks(0).wait_reason().empty());
}

TEST(JobFlow, ACompletedTaskKeepsItsSlotUntilItsProcessIsGone) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  const v1::TaskRef ref = cluster.Running(job_id)[0];
  ASSERT_TRUE(cluster.core().CompleteTask(ref, {}).ok());
  cluster.Settle();
  EXPECT_THAT(cluster.Job(job_id).stages(1).tasks(0).wait_reason(), HasSubstr("0 free of 1"));
  cluster.Exit(ref.task_id(), 0);
  EXPECT_THAT(cluster.Running(job_id), SizeIs(1));
}

TEST(JobFlow, IncompleteResultsAreRefused) {
  Harness cluster;
  cluster.StartWorker("w", 4);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  cluster.Complete(cluster.Running(job_id)[0]);
  cluster.Settle();
  const absl::Status status = cluster.core().CompleteTask(cluster.Running(job_id)[0], {});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("dataset"));
}

}  // namespace
}  // namespace retort
