// Workers that fall silent, come back, are replaced, or keep failing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "coordinator/ops/task_ops.h"
#include "coordinator/ops/worker_ops.h"
#include "tests/coordinator/harness.h"

namespace retort {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

v1::WorkerStatus StatusOf(Harness* cluster, const std::string& worker_id) {
  const auto workers = cluster->core().ListWorkers();
  for (const v1::WorkerStatus& status : *workers) {
    if (status.worker_id() == worker_id) return status;
  }
  return {};
}

TEST(Workers, SilenceMakesSuspectThenLost) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  cluster.StartWorker("v", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  const v1::TaskRef ref = cluster.Running(job_id)[0];
  const std::string holder = cluster.WorkerOf(ref.task_id());
  cluster.Silence(holder);
  cluster.Advance(absl::Milliseconds(600));
  EXPECT_EQ(StatusOf(&cluster, holder).state(), v1::WORKER_STATE_SUSPECT);
  EXPECT_TRUE(cluster.core().Check(ref).ok()) << "a suspect keeps its tasks";
  cluster.Advance(absl::Milliseconds(9600));
  EXPECT_EQ(StatusOf(&cluster, holder).state(), v1::WORKER_STATE_LOST);
  EXPECT_EQ(cluster.core().Check(ref).code(), absl::StatusCode::kFailedPrecondition);
  const v1::Job job = cluster.Job(job_id);
  EXPECT_THAT(job.stages(0).tasks(0).last_error(), HasSubstr("silent"));
  EXPECT_NE(job.stages(0).tasks(0).worker_id(), holder) << "it runs elsewhere";
  EXPECT_EQ(job.stages(0).tasks(0).worker_id().empty(), false);
}

TEST(Workers, AShortSilenceCostsNothing) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  const v1::TaskRef ref = cluster.Running(job_id)[0];
  cluster.Silence("w");
  cluster.Advance(absl::Seconds(8));
  cluster.Unsilence("w");
  cluster.Advance(absl::Seconds(20));
  EXPECT_TRUE(cluster.core().Check(ref).ok());
  EXPECT_EQ(StatusOf(&cluster, "w").state(), v1::WORKER_STATE_READY);
}

TEST(Workers, ALostWorkerThatComesBackKillsWhatIsFenced) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  const v1::TaskRef old = cluster.Running(job_id)[0];
  cluster.Silence("w");
  cluster.Advance(absl::Seconds(11));
  cluster.Unsilence("w");
  cluster.Advance(absl::Seconds(1));
  const auto running = cluster.Running(job_id);
  ASSERT_THAT(running, SizeIs(1)) << "the old process is gone, the new one is there";
  EXPECT_GT(running[0].epoch(), old.epoch());
}

TEST(Workers, ARestartedDaemonLosesItsTasksAtOnceAndIsChargedOnce) {
  Harness cluster;
  cluster.StartWorker("w", 4);
  const std::string job_id = cluster.Submit(TrainSpec(3, 3));
  ASSERT_THAT(cluster.Running(job_id), SizeIs(3));
  for (int i = 0; i < 3; ++i) {  // the budget is 3
    cluster.StartWorker("w", 4);
    cluster.Advance(absl::Seconds(11));
    ASSERT_THAT(cluster.Running(job_id), SizeIs(3));
  }
  EXPECT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_RUNNING);
}

TEST(Workers, BothRestartedWhileApartAlsoLosesTheTasksAtOnce) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  const v1::TaskRef old = cluster.Running(job_id)[0];
  cluster.Restart();
  cluster.StartWorker("w", 1);
  const auto running = cluster.Running(job_id);
  ASSERT_THAT(running, SizeIs(1));
  EXPECT_GT(running[0].epoch(), old.epoch());
}

TEST(Workers, AnOlderIncarnationIsRefused) {
  Harness cluster;
  v1::RegisterWorkerRequest request;
  request.set_worker_id("w");
  request.set_incarnation_id("first");
  request.mutable_resources()->set_cpu_slots(1);
  ASSERT_TRUE(cluster.core().RegisterWorker(request).ok());
  ASSERT_TRUE(cluster.core().RegisterWorker(request).ok()) << "the same may register again";
  v1::RegisterWorkerRequest second = request;
  second.set_incarnation_id("second");
  ASSERT_TRUE(cluster.core().RegisterWorker(second).ok());
  EXPECT_EQ(cluster.core().RegisterWorker(request).code(), absl::StatusCode::kAborted);
  v1::HeartbeatRequest heartbeat;
  heartbeat.set_worker_id("w");
  heartbeat.set_incarnation_id("first");
  EXPECT_EQ(cluster.core().Heartbeat(heartbeat).code(), absl::StatusCode::kAborted);
  heartbeat.set_incarnation_id("never seen");
  EXPECT_EQ(cluster.core().Heartbeat(heartbeat).code(), absl::StatusCode::kNotFound);
  heartbeat.set_worker_id("stranger");
  EXPECT_EQ(cluster.core().Heartbeat(heartbeat).code(), absl::StatusCode::kNotFound);
}

TEST(Workers, ProcessThatVanishedUnseenIsLost) {
  Harness cluster;
  v1::RegisterWorkerRequest request;
  request.set_worker_id("w");
  request.set_incarnation_id("i");
  request.mutable_resources()->set_cpu_slots(1);
  ASSERT_TRUE(cluster.core().RegisterWorker(request).ok());
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  v1::WatchAssignmentsRequest watch;
  watch.set_worker_id("w");
  watch.set_incarnation_id("i");
  const auto assignments = cluster.core().WaitAssignments(watch, 0, absl::ZeroDuration(), [] { return false; });
  ASSERT_TRUE(assignments.ok());
  ASSERT_EQ(assignments->assignments_size(), 1);
  const v1::TaskRef ref = assignments->assignments(0).ref();
  ASSERT_TRUE(cluster.core().GetTask(ref).ok());
  v1::HeartbeatRequest heartbeat;
  heartbeat.set_worker_id("w");
  heartbeat.set_incarnation_id("i");
  *heartbeat.add_running()->mutable_ref() = ref;
  ASSERT_TRUE(cluster.core().Heartbeat(heartbeat).ok());
  heartbeat.clear_running();
  for (int i = 0; i < 70; ++i) {
    ASSERT_TRUE(cluster.core().Heartbeat(heartbeat).ok());
    cluster.clock().Advance(absl::Milliseconds(100));
    cluster.core().RunDuties();
  }
  EXPECT_EQ(cluster.core().Check(ref).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(Workers, OneThatKeepsFailingIsDrainedButNeverTheLast) {
  Harness cluster;
  cluster.StartWorker("bad", 1);
  v1::JobSpec spec = GenerateSpec(1, 1);
  spec.set_max_infrastructure_failures(100);
  const std::string job_id = cluster.Submit(spec);
  for (int i = 0; i < 6; ++i) {
    cluster.Exit(job_id + ".generate.0.0", 0, 9);
    cluster.Advance(absl::Seconds(11));
  }
  EXPECT_EQ(StatusOf(&cluster, "bad").state(), v1::WORKER_STATE_READY) << "it is the last";
  EXPECT_EQ(StatusOf(&cluster, "bad").recent_failures(), 6);
  cluster.StartWorker("good", 1);
  cluster.Exit(job_id + ".generate.0.0", 0, 9);
  EXPECT_EQ(StatusOf(&cluster, "bad").state(), v1::WORKER_STATE_DRAINING);
  cluster.Advance(absl::Seconds(11));
  EXPECT_EQ(cluster.WorkerOf(job_id + ".generate.0.0"), "good");
}

TEST(Workers, TheLastWithAGpuIsNotDrained) {
  Harness cluster;
  cluster.StartWorker("gpu", 1, 1);
  cluster.StartWorker("cpu", 4);
  v1::JobSpec spec = GenerateSpec(1, 1);
  spec.mutable_teacher()->set_device("cuda");
  spec.set_max_infrastructure_failures(100);
  const std::string job_id = cluster.Submit(spec);
  for (int i = 0; i < 7; ++i) {
    cluster.Exit(job_id + ".generate.0.0", 0, 9);
    cluster.Advance(absl::Seconds(11));
  }
  EXPECT_EQ(StatusOf(&cluster, "gpu").recent_failures(), 7);
  EXPECT_EQ(StatusOf(&cluster, "gpu").state(), v1::WORKER_STATE_READY);
  EXPECT_EQ(cluster.WorkerOf(job_id + ".generate.0.0"), "gpu");
}

TEST(Workers, FailuresThatTasksTellThemselvesDrainItToo) {
  Harness cluster;
  cluster.StartWorker("bad", 1);
  v1::JobSpec spec = GenerateSpec(1, 1);
  spec.set_max_infrastructure_failures(100);
  const std::string job_id = cluster.Submit(spec);
  for (int i = 1; i <= 6; ++i) {
    if (i == 6) cluster.StartWorker("good", 1);
    const v1::TaskRef ref = cluster.RunningRef(job_id + ".generate.0.0");
    ASSERT_TRUE(cluster.core().FailTask(ref, v1::FAILURE_CAUSE_INFRASTRUCTURE, "CUDA error").ok());
    cluster.Exit(ref.task_id(), 1);
    EXPECT_EQ(StatusOf(&cluster, "bad").recent_failures(), i) << "the exit is not another one";
    cluster.Advance(absl::Seconds(11));
  }
  EXPECT_EQ(StatusOf(&cluster, "bad").state(), v1::WORKER_STATE_DRAINING);
}

TEST(Workers, WhatAWorkerEndsItselfCostsTheJobNothing) {
  Harness cluster;
  for (int i = 0; i < 11; ++i) cluster.StartWorker(absl::StrCat("w", i), 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 11));  // tolerates 3
  ASSERT_THAT(cluster.Running(job_id), SizeIs(11));
  cluster.clock().Advance(absl::Seconds(20));  // the coordinator is away for longer than the leases last
  cluster.Restart();
  cluster.Settle();
  for (int i = 0; i < 11; ++i) {
    cluster.KillTasksOf(absl::StrCat("w", i));
    cluster.Advance(absl::Seconds(2));
  }
  EXPECT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_RUNNING) << cluster.Job(job_id).message();
  EXPECT_THAT(cluster.Running(job_id), SizeIs(11));
  EXPECT_EQ(StatusOf(&cluster, "w0").recent_failures(), 0);
}

TEST(Workers, ManyThatAreLostTogetherAreOneFailure) {
  Harness cluster;
  for (int i = 0; i < 11; ++i) cluster.StartWorker(absl::StrCat("w", i), 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 11));  // tolerates 3
  for (int i = 0; i < 11; ++i) {
    cluster.Silence(absl::StrCat("w", i));
    if (i % 3 == 0) cluster.Advance(absl::Milliseconds(100));
  }
  cluster.Advance(absl::Seconds(12));
  EXPECT_EQ(StatusOf(&cluster, "w10").state(), v1::WORKER_STATE_LOST);
  EXPECT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_RUNNING) << cluster.Job(job_id).message();
}

TEST(Workers, OneThatStopsGetsNothingNew) {
  Harness cluster;
  cluster.StartWorker("w", 4);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  for (int i = 0; i < 5; ++i) {  // tolerates 3
    cluster.StopWorker("w");
    EXPECT_EQ(StatusOf(&cluster, "w").state(), v1::WORKER_STATE_DRAINING);
    EXPECT_EQ(cluster.Job(job_id).stages(0).tasks(0).state(), v1::TASK_STATE_WAITING);
    cluster.StartWorker("w", 4);
    cluster.Advance(absl::Seconds(11));
    ASSERT_THAT(cluster.Running(job_id), SizeIs(1));
  }
  EXPECT_EQ(cluster.Job(job_id).state(), v1::JOB_STATE_RUNNING);
}

TEST(Workers, ATaskThatSaysNothingIsReplaced) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  cluster.Advance(absl::Minutes(2));
  const v1::TaskRef ref = cluster.Running(job_id)[0];
  EXPECT_EQ(cluster.Job(job_id).stages(0).tasks(0).failures(), 0) << "it speaks";
  cluster.Hang(ref.task_id());
  cluster.Advance(absl::Seconds(59));
  EXPECT_TRUE(cluster.core().Check(ref).ok());
  cluster.Advance(absl::Seconds(2));
  EXPECT_EQ(cluster.core().Check(ref).code(), absl::StatusCode::kFailedPrecondition);
  const v1::Task task = cluster.Job(job_id).stages(0).tasks(0);
  EXPECT_EQ(task.last_error(), "its process has not answered for 60s");
  EXPECT_EQ(StatusOf(&cluster, "w").recent_failures(), 1);
  const auto running = cluster.Running(job_id);
  ASSERT_THAT(running, SizeIs(1)) << "its worker has killed it, and begun the next";
  EXPECT_GT(running[0].epoch(), ref.epoch());
}

TEST(Workers, AProcessHasTimeForItsFirstWord) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  const v1::TaskRef ref = cluster.Running(job_id)[0];
  cluster.Hang(ref.task_id());
  cluster.Advance(absl::Minutes(4));
  EXPECT_TRUE(cluster.core().Check(ref).ok());
  cluster.Advance(absl::Minutes(2));
  EXPECT_EQ(cluster.core().Check(ref).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(Workers, AnAbsentCoordinatorHoldsNoSilenceAgainstATask) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  cluster.Advance(absl::Seconds(1));
  const v1::TaskRef ref = cluster.Running(job_id)[0];
  cluster.clock().Advance(absl::Minutes(5));
  cluster.core().RunDuties();  // was stopped for so long
  EXPECT_TRUE(cluster.core().Check(ref).ok());
  cluster.clock().Advance(absl::Minutes(5));
  cluster.Restart();
  cluster.Settle();
  EXPECT_TRUE(cluster.core().Check(ref).ok());
}

TEST(Workers, AJobThatBeganOnAGpuWaitsForOne) {
  Harness cluster;
  cluster.StartWorker("gpu", 1, 1);
  cluster.StartWorker("cpu", 4);
  v1::JobSpec spec = TrainSpec(1, 1);
  spec.mutable_student()->set_device("auto");
  const std::string job_id = cluster.Submit(spec);
  ASSERT_EQ(cluster.WorkerOf(job_id + ".train.0.0"), "gpu");
  cluster.Silence("gpu");
  cluster.Advance(absl::Seconds(15));
  EXPECT_EQ(StatusOf(&cluster, "gpu").state(), v1::WORKER_STATE_LOST);
  EXPECT_THAT(cluster.Job(job_id).stages(0).tasks(0).wait_reason(), HasSubstr("began on a GPU"));
  EXPECT_EQ(cluster.Job(job_id).stages(0).tasks(0).state(), v1::TASK_STATE_WAITING);
  cluster.StartWorker("gpu", 1, 1);
  cluster.Advance(absl::Seconds(1));
  EXPECT_EQ(cluster.WorkerOf(job_id + ".train.0.0"), "gpu");
}

TEST(Workers, EveryEvaluatedModelGetsItsOwnKindOfSlot) {
  Harness cluster;
  cluster.StartWorker("w", 4, 2);
  v1::JobSpec spec = FullSpec();
  spec.mutable_student()->set_device("cuda");
  spec.mutable_teacher()->set_backend(v1::TEACHER_BACKEND_OPENAI);
  spec.mutable_teacher()->set_base_url("http://127.0.0.1:1/v1");
  const std::string job_id = cluster.Submit(spec);
  for (int i = 0; i < 50 && cluster.Job(job_id).stages(3).state() != v1::STAGE_STATE_RUNNING; ++i) {
    cluster.Complete(cluster.Running(job_id)[0]);
    cluster.Advance(absl::Seconds(3));
  }
  ASSERT_THAT(cluster.Running(job_id), SizeIs(3)) << "two on the GPUs, the endpoint's client in a CPU slot";
  EXPECT_EQ(cluster.GpusOf(job_id + ".evaluate.0.0"), 1);
  EXPECT_EQ(cluster.GpusOf(job_id + ".evaluate.0.1"), 0);
  EXPECT_EQ(cluster.GpusOf(job_id + ".evaluate.0.2"), 1);
}

TEST(Workers, APausedCoordinatorBlamesNobody) {
  Harness cluster;
  cluster.StartWorker("w", 1);
  const std::string job_id = cluster.Submit(GenerateSpec(1, 1));
  const v1::TaskRef ref = cluster.Running(job_id)[0];
  cluster.clock().Advance(absl::Minutes(5));
  cluster.core().RunDuties();
  EXPECT_TRUE(cluster.core().Check(ref).ok());
}

TEST(Workers, GpusAreHandedOutOneByOne) {
  Harness cluster;
  cluster.StartWorker("w", 4, 2);
  v1::JobSpec spec = TrainSpec(2, 4);
  spec.mutable_student()->set_device("auto");
  const std::string job_id = cluster.Submit(spec);
  const auto running = cluster.Running(job_id);
  ASSERT_THAT(running, SizeIs(2));
  EXPECT_THAT(cluster.Job(job_id).stages(0).tasks(2).wait_reason(), HasSubstr("gpu"));
}

TEST(Workers, BadRegistrationsAreRefused) {
  Harness cluster;
  v1::RegisterWorkerRequest request;
  EXPECT_EQ(cluster.core().RegisterWorker(request).code(), absl::StatusCode::kInvalidArgument);
  request.set_worker_id("w");
  request.set_incarnation_id("i");
  request.mutable_resources()->set_cpu_slots(1 << 20);
  EXPECT_EQ(cluster.core().RegisterWorker(request).code(), absl::StatusCode::kInvalidArgument);
}

TEST(DescribeExit, SaysWhatHappened) {
  v1::TaskExit exit;
  exit.set_signal(9);
  EXPECT_EQ(DescribeExit(exit), "killed by signal 9 (KILL)");
  exit.set_signal(0);
  exit.set_exit_code(7);
  exit.set_message("last words");
  EXPECT_EQ(DescribeExit(exit), "exited with code 7: last words");
}

TEST(RetryBackoff, FirstIsImmediateThenDoublesToItsLimit) {
  EXPECT_EQ(RetryBackoff(1), absl::ZeroDuration());
  EXPECT_EQ(RetryBackoff(2), absl::Milliseconds(200));
  EXPECT_EQ(RetryBackoff(3), absl::Milliseconds(400));
  EXPECT_EQ(RetryBackoff(8), absl::Seconds(10));
  EXPECT_EQ(RetryBackoff(1000), absl::Seconds(10));
}

}  // namespace
}  // namespace retort
