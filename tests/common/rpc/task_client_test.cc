#include "common/rpc/task_client.h"

#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <new>
#include <set>
#include <stdexcept>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/status.h"

namespace retort {
namespace {

// A coordinator that remembers what it was told and can refuse or lose calls.
class FakeCoordinator final : public v1::TaskService::Service, public v1::RendezvousService::Service {
 public:
  FakeCoordinator() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(static_cast<v1::TaskService::Service*>(this));
    builder.RegisterService(static_cast<v1::RendezvousService::Service*>(this));
    server_ = builder.BuildAndStart();
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

  grpc::Status GetTask(grpc::ServerContext*, const v1::GetTaskRequest* request,
                       v1::GetTaskResponse* response) override {
    if (unavailable_calls.fetch_sub(1) > 0) return ToGrpc(absl::UnavailableError("restarting"));
    response->set_job_id("job");
    response->mutable_curate();
    return grpc::Status::OK;
  }
  grpc::Status ReportProgress(grpc::ServerContext*, const v1::ReportProgressRequest* request,
                              v1::ReportProgressResponse* response) override {
    if (fenced) return ToGrpc(absl::FailedPreconditionError("epoch 1 is fenced"));
    absl::MutexLock lock(&mu);
    progress = request->progress();
    for (const v1::LossPoint& point : request->new_losses()) steps.insert(point.step());
    ++reports;
    // The points were taken, the answer is lost.
    if (lost_replies.fetch_sub(1) > 0) return ToGrpc(absl::UnavailableError("connection broke"));
    response->set_gang_generation(generation);
    return grpc::Status::OK;
  }
  grpc::Status RegisterCheckpoint(grpc::ServerContext*, const v1::RegisterCheckpointRequest* request,
                                  v1::RegisterCheckpointResponse*) override {
    absl::MutexLock lock(&mu);
    checkpoint_step = request->checkpoint().step();
    return grpc::Status::OK;
  }
  grpc::Status CompleteTask(grpc::ServerContext*, const v1::CompleteTaskRequest* request,
                            v1::CompleteTaskResponse*) override {
    if (fenced) return ToGrpc(absl::FailedPreconditionError("epoch 1 is fenced"));
    absl::MutexLock lock(&mu);
    completed = request->result();
    steps_at_completion = steps.size();
    ++completions;
    return grpc::Status::OK;
  }
  grpc::Status FailTask(grpc::ServerContext*, const v1::FailTaskRequest* request, v1::FailTaskResponse*) override {
    absl::MutexLock lock(&mu);
    failure = *request;
    return grpc::Status::OK;
  }
  grpc::Status JoinGang(grpc::ServerContext*, const v1::JoinGangRequest* request,
                        v1::JoinGangResponse* response) override {
    if (join_refusals.fetch_sub(1) > 0)
      return ToGrpc(absl::DeadlineExceededError("others have not joined; call again"));
    response->set_generation(request->last_generation() + 1);
    *response->add_members()->mutable_ref() = request->ref();
    return grpc::Status::OK;
  }

  std::atomic<int> unavailable_calls{0};
  std::atomic<int> lost_replies{0};
  std::atomic<int> join_refusals{0};
  std::atomic<bool> fenced{false};
  absl::Mutex mu;
  v1::Progress progress ABSL_GUARDED_BY(mu);
  std::set<int64_t> steps ABSL_GUARDED_BY(mu);
  int reports ABSL_GUARDED_BY(mu) = 0;
  uint64_t generation ABSL_GUARDED_BY(mu) = 0;
  int64_t checkpoint_step ABSL_GUARDED_BY(mu) = 0;
  v1::TaskResult completed ABSL_GUARDED_BY(mu);
  size_t steps_at_completion ABSL_GUARDED_BY(mu) = 0;
  int completions ABSL_GUARDED_BY(mu) = 0;
  v1::FailTaskRequest failure ABSL_GUARDED_BY(mu);

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

class TaskClientTest : public testing::Test {
 protected:
  // As a daemon would start it.
  int Run(const std::function<absl::StatusOr<v1::TaskResult>(TaskContext&)>& work) {
    std::vector<std::string> words = {"retort-test",
                                      "task",
                                      "--coordinator",
                                      coordinator_.address(),
                                      "--task-id",
                                      "job.curate.0.0",
                                      "--epoch=1",
                                      "--work-dir",
                                      "/",
                                      "--cache-dir",
                                      "/"};
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    return RunTask(static_cast<int>(argv.size()), argv.data(), "test", work);
  }
  FakeCoordinator coordinator_;
};

TEST(TaskFlags, ParsesBothSpellings) {
  const char* argv[] = {"--coordinator", "127.0.0.1:1", "--task-id=j.train.0.1", "--epoch", "7",
                        "--work-dir",    "/w",          "--cache-dir",           "/c",      "--threads=3",
                        "--token-file",  "/t"};
  const auto flags = ParseTaskFlags(std::size(argv), argv);
  ASSERT_TRUE(flags.ok()) << flags.status();
  EXPECT_EQ(flags->channel.address, "127.0.0.1:1");
  EXPECT_EQ(flags->channel.token_file, "/t");
  EXPECT_EQ(flags->ref.task_id(), "j.train.0.1");
  EXPECT_EQ(flags->ref.epoch(), 7u);
  EXPECT_EQ(flags->threads, 3);
}

TEST(TaskFlags, NamesWhatIsWrong) {
  const auto error = [](std::vector<const char*> argv) {
    return std::string(ParseTaskFlags(static_cast<int>(argv.size()), argv.data()).status().message());
  };
  EXPECT_EQ(error({"--colour", "red"}), "unknown flag \"--colour\" for a task");
  EXPECT_EQ(error({"--epoch"}), "--epoch needs a value");
  EXPECT_EQ(error({"--epoch", "x"}), "--epoch: \"x\" is not a possible value");
  EXPECT_EQ(error({"--epoch", "1", "--epoch", "1"}), "--epoch is given twice");
  EXPECT_EQ(error({"--threads", "0"}), "--threads: \"0\" is not a possible value");
  EXPECT_EQ(error({"--epoch", "1"}), "a task needs --coordinator");
}

TEST_F(TaskClientTest, DeliversTheResultAfterARestartOfTheCoordinator) {
  coordinator_.unavailable_calls = 2;
  EXPECT_EQ(Run([](TaskContext& context) -> absl::StatusOr<v1::TaskResult> {
              EXPECT_EQ(context.task().job_id(), "job");
              EXPECT_TRUE(context.task().has_curate());
              v1::TaskResult result;
              result.set_manifest_sha256("m");
              return result;
            }),
            kTaskExitDone);
  absl::MutexLock lock(&coordinator_.mu);
  EXPECT_EQ(coordinator_.completed.manifest_sha256(), "m");
}

TEST_F(TaskClientTest, AnUnreadableArtifactIsNamed) {
  EXPECT_EQ(Run([](TaskContext&) -> absl::StatusOr<v1::TaskResult> {
              return WithContext(WithUnreadableArtifact(absl::DataLossError("another hash"), "id"), "fetch");
            }),
            kTaskExitFailed);
  absl::MutexLock lock(&coordinator_.mu);
  EXPECT_EQ(coordinator_.failure.unreadable_artifact_id(), "id");
  EXPECT_EQ(coordinator_.failure.message(), "fetch: another hash");
  EXPECT_EQ(coordinator_.failure.cause(), v1::FAILURE_CAUSE_INFRASTRUCTURE);
}

TEST_F(TaskClientTest, AReportIsSentAlsoWithoutNews) {
  EXPECT_EQ(Run([&](TaskContext&) -> absl::StatusOr<v1::TaskResult> {
              // The work says nothing at all: a coordinator takes a process that is silent for a minute for hung.
              const auto twice = [&] {
                coordinator_.mu.AssertHeld();
                return coordinator_.reports >= 2;
              };
              absl::MutexLock lock(&coordinator_.mu);
              EXPECT_TRUE(coordinator_.mu.AwaitWithTimeout(absl::Condition(&twice), absl::Seconds(10)));
              return v1::TaskResult();
            }),
            kTaskExitDone);
}

TEST_F(TaskClientTest, NoLossIsLostWhenRepliesAre) {
  coordinator_.lost_replies = 2;
  EXPECT_EQ(Run([](TaskContext& context) -> absl::StatusOr<v1::TaskResult> {
              for (int64_t step = 1; step <= 2'500; ++step) {
                v1::LossPoint point;
                point.set_step(step);
                context.ReportLoss(point);
              }
              return v1::TaskResult();
            }),
            kTaskExitDone);
  absl::MutexLock lock(&coordinator_.mu);
  EXPECT_EQ(coordinator_.steps.size(), 2'500u);
  EXPECT_EQ(coordinator_.steps_at_completion, 2'500u);
}

TEST_F(TaskClientTest, ReportsAreLimitedAndBringTheGeneration) {
  {
    absl::MutexLock lock(&coordinator_.mu);
    coordinator_.generation = 4;
  }
  EXPECT_EQ(Run([&](TaskContext& context) -> absl::StatusOr<v1::TaskResult> {
              const absl::Time start = absl::Now();
              for (int done = 1; absl::Now() - start < absl::Milliseconds(450); ++done) {
                v1::Progress progress;
                progress.set_done(done);
                context.ReportProgress(progress);
              }
              EXPECT_EQ(context.gang_generation(), 4u);
              absl::MutexLock lock(&coordinator_.mu);
              EXPECT_GE(coordinator_.reports, 1);
              EXPECT_LE(coordinator_.reports, 4);
              EXPECT_GT(coordinator_.progress.done(), 0);
              return v1::TaskResult();
            }),
            kTaskExitDone);
}

TEST_F(TaskClientTest, JoinsAgainUntilTheGangIsWhole) {
  coordinator_.join_refusals = 2;
  EXPECT_EQ(Run([](TaskContext& context) -> absl::StatusOr<v1::TaskResult> {
              const auto joined = context.JoinGang("127.0.0.1:9", 5, 8, absl::Seconds(10));
              if (!joined.ok()) return joined.status();
              EXPECT_EQ(joined->generation(), 9u);
              EXPECT_EQ(context.gang_generation(), 9u);
              v1::Checkpoint checkpoint;
              checkpoint.set_step(12);
              if (const absl::Status status = context.RegisterCheckpoint(checkpoint); !status.ok()) return status;
              return v1::TaskResult();
            }),
            kTaskExitDone);
  absl::MutexLock lock(&coordinator_.mu);
  EXPECT_EQ(coordinator_.checkpoint_step, 12);
}

TEST_F(TaskClientTest, FailuresCarryTheirCause) {
  const auto cause_of = [&](const absl::Status& status) {
    EXPECT_EQ(Run([&](TaskContext&) -> absl::StatusOr<v1::TaskResult> { return status; }), kTaskExitFailed);
    absl::MutexLock lock(&coordinator_.mu);
    EXPECT_EQ(coordinator_.failure.message(), std::string(status.message()));
    return coordinator_.failure.cause();
  };
  EXPECT_EQ(cause_of(absl::NotFoundError("/models/x: no such folder")), v1::FAILURE_CAUSE_USER_ERROR);
  EXPECT_EQ(cause_of(absl::ResourceExhaustedError("disk full")), v1::FAILURE_CAUSE_USER_ERROR);
  EXPECT_EQ(cause_of(absl::InternalError("peer vanished")), v1::FAILURE_CAUSE_INFRASTRUCTURE);
  EXPECT_EQ(cause_of(absl::UnavailableError("endpoint is down")), v1::FAILURE_CAUSE_INFRASTRUCTURE);
}

TEST_F(TaskClientTest, ExceptionsAndBadTextBecomeFailures) {
  EXPECT_EQ(Run([](TaskContext&) -> absl::StatusOr<v1::TaskResult> { throw std::runtime_error("bad byte \xff here"); }),
            kTaskExitFailed);
  {
    absl::MutexLock lock(&coordinator_.mu);
    EXPECT_EQ(coordinator_.failure.message(), "unexpected: bad byte ? here");
    EXPECT_EQ(coordinator_.failure.cause(), v1::FAILURE_CAUSE_INFRASTRUCTURE);
  }
  EXPECT_EQ(Run([](TaskContext&) -> absl::StatusOr<v1::TaskResult> { throw std::bad_alloc(); }), kTaskExitFailed);
  absl::MutexLock lock(&coordinator_.mu);
  EXPECT_EQ(coordinator_.failure.cause(), v1::FAILURE_CAUSE_USER_ERROR);
}

TEST_F(TaskClientTest, AFencedTaskEndsAtOnce) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        InitLogging("test");
        FakeCoordinator coordinator;
        coordinator.fenced = true;
        TaskFlags flags;
        flags.channel.address = coordinator.address();
        flags.ref.set_task_id("job.train.0.0");
        const auto context = TaskContext::Open(flags);
        (*context)->ReportProgress(v1::Progress());
        absl::SleepFor(absl::Seconds(20));
      },
      testing::ExitedWithCode(kTaskExitFenced), "task_fenced");
}

TEST_F(TaskClientTest, ATaskWhoseParentIsGoneDoesNotStart) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(
      {
        setenv(kParentPidVariable, "999999999", 1);
        Run([](TaskContext&) -> absl::StatusOr<v1::TaskResult> { return v1::TaskResult(); });
      },
      testing::ExitedWithCode(kTaskExitFenced), "parent_gone");
}

}  // namespace
}  // namespace retort
