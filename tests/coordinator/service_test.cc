// The whole coordinator through gRPC: a fake worker and fake tasks drive jobs over a real server with real stores.
#include <gmock/gmock.h>
#include <grpcpp/client_context.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/hash.h"
#include "common/rpc/channel.h"
#include "coordinator/server.h"
#include "coordinator/transitions.h"
#include "retort/v1/artifact_service.grpc.pb.h"
#include "retort/v1/sample_service.grpc.pb.h"
#include "tests/coordinator/harness.h"

namespace retort {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(20);

class ServiceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "retort-service-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    ASSERT_TRUE(EnsureTokenFile(folder_ + "/token").ok());
    Start();
  }
  void TearDown() override {
    StopWorker();
    server_.reset();
    std::filesystem::remove_all(folder_);
  }

  void Start(const std::string& address = "127.0.0.1:0") {
    auto server =
        CoordinatorServer::Start(folder_ + "/coordinator", {.address = address, .token_file = folder_ + "/token"}, {});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = std::move(*server);
    auto channel = OpenChannel({.address = server_->address(), .token_file = folder_ + "/token"});
    ASSERT_TRUE(channel.ok());
    jobs_ = v1::JobService::NewStub(*channel);
    tasks_ = v1::TaskService::NewStub(*channel);
    workers_ = v1::WorkerService::NewStub(*channel);
    gangs_ = v1::RendezvousService::NewStub(*channel);
    artifacts_ = v1::ArtifactService::NewStub(*channel);
  }

  // A context with a deadline.
  struct Call : grpc::ClientContext {
    explicit Call(absl::Duration timeout = kPatience) {
      set_wait_for_ready(true);
      set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    }
  };

  v1::BlobRef PutBlob(const std::string& contents) {
    v1::PutBlobRequest request;
    request.mutable_blob()->set_sha256(Sha256Hex(contents));
    request.mutable_blob()->set_size_bytes(static_cast<int64_t>(contents.size()));
    v1::PutBlobRequest data;
    data.set_data(contents);
    v1::PutBlobResponse response;
    Call call;
    auto writer = artifacts_->PutBlob(&call, &response);
    writer->Write(request);
    writer->Write(data);
    writer->WritesDone();
    const grpc::Status status = writer->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    return request.blob();
  }
  std::string PutArtifact(const std::string& contents) {
    v1::PutArtifactRequest request;
    v1::ArtifactFile& file = *request.mutable_artifact()->add_files();
    file.set_path("file");
    *file.mutable_blob() = PutBlob(contents);
    v1::PutArtifactResponse response;
    Call call;
    EXPECT_TRUE(artifacts_->PutArtifact(&call, request, &response).ok());
    return response.artifact_id();
  }
  void UploadInputs() {
    for (const char* contents : {"prompts", "train", "evaluation", "curated"}) PutBlob(contents);
  }

  std::string Submit(const v1::JobSpec& spec, const std::string& request_id) {
    v1::SubmitJobRequest request;
    request.set_request_id(request_id);
    *request.mutable_spec() = spec;
    v1::SubmitJobResponse response;
    Call call;
    const grpc::Status status = jobs_->SubmitJob(&call, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.job_id();
  }
  v1::Job GetJob(const std::string& job_id) {
    v1::GetJobRequest request;
    request.set_job_id(job_id);
    v1::GetJobResponse response;
    Call call;
    const grpc::Status status = jobs_->GetJob(&call, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.job();
  }

  // Worker "w", as its daemon does.
  void RegisterWorker(const std::string& incarnation, int slots) {
    v1::RegisterWorkerRequest request;
    request.set_worker_id("w");
    request.set_incarnation_id(incarnation);
    request.mutable_resources()->set_cpu_slots(slots);
    request.mutable_resources()->set_cpu_cores(slots);
    v1::RegisterWorkerResponse response;
    Call call;
    ASSERT_TRUE(workers_->RegisterWorker(&call, request, &response).ok());
    EXPECT_EQ(response.lease_ttl_millis(), 10'000);
  }
  // One daemon with `slots` slots: takes its assignments and runs each as DoTask says, one after another.
  void StartWorker(int slots) {
    const std::string incarnation = absl::StrCat("i", ++incarnation_);
    ASSERT_NO_FATAL_FAILURE(RegisterWorker(incarnation, slots));
    stopping_ = false;
    watch_context_ = std::make_unique<grpc::ClientContext>();
    worker_ = std::thread([this, incarnation] { WorkLoop(incarnation); });
  }
  void StopWorker() {
    if (!worker_.joinable()) return;
    stopping_ = true;
    watch_context_->TryCancel();
    worker_.join();
  }
  void WorkLoop(const std::string& incarnation) {
    v1::WatchAssignmentsRequest request;
    request.set_worker_id("w");
    request.set_incarnation_id(incarnation);
    auto reader = workers_->WatchAssignments(watch_context_.get(), request);
    v1::WatchAssignmentsResponse assignments;
    std::set<PlacementKey> done;
    while (!stopping_ && reader->Read(&assignments)) {
      for (const v1::Assignment& assignment : assignments.assignments()) {
        if (stopping_) break;
        if (!done.emplace(assignment.ref().task_id(), assignment.ref().epoch()).second) continue;
        last_role_ = assignment.role();
        DoTask(assignment.ref());
        v1::ReportTaskExitRequest exit;
        exit.set_worker_id("w");
        exit.set_incarnation_id(incarnation);
        *exit.mutable_exit()->mutable_ref() = assignment.ref();
        v1::ReportTaskExitResponse response;
        Call call;
        EXPECT_TRUE(workers_->ReportTaskExit(&call, exit, &response).ok());
      }
    }
  }
  void DoTask(const v1::TaskRef& ref) {
    v1::GetTaskRequest request;
    *request.mutable_ref() = ref;
    v1::GetTaskResponse task;
    Call get;
    ASSERT_TRUE(tasks_->GetTask(&get, request, &task).ok());
    v1::CompleteTaskRequest complete;
    *complete.mutable_ref() = ref;
    *complete.mutable_result() = ResultFor(task);
    for (v1::JobArtifact& artifact : *complete.mutable_result()->mutable_artifacts()) {
      artifact.set_artifact_id(PutArtifact(artifact.name()));
    }
    v1::CompleteTaskResponse response;
    Call call;
    const grpc::Status status = tasks_->CompleteTask(&call, complete, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
  }
  v1::Job WaitForEnd(const std::string& job_id) {
    v1::WatchJobRequest request;
    request.set_job_id(job_id);
    v1::WatchJobResponse response;
    Call call;
    auto reader = jobs_->WatchJob(&call, request);
    v1::Job last;
    while (reader->Read(&response)) last = response.job();
    EXPECT_TRUE(reader->Finish().ok());
    return last;
  }

  std::string folder_;
  std::unique_ptr<CoordinatorServer> server_;
  std::unique_ptr<v1::JobService::Stub> jobs_;
  std::unique_ptr<v1::TaskService::Stub> tasks_;
  std::unique_ptr<v1::WorkerService::Stub> workers_;
  std::unique_ptr<v1::RendezvousService::Stub> gangs_;
  std::unique_ptr<v1::ArtifactService::Stub> artifacts_;
  std::unique_ptr<grpc::ClientContext> watch_context_;
  std::thread worker_;
  std::atomic<bool> stopping_{false};
  int incarnation_ = 0;
  std::string last_role_;
};

TEST_F(ServiceTest, AWholeJob) {
  UploadInputs();
  v1::JobSpec spec = FullSpec();
  spec.mutable_student()->mutable_workers()->set_min(1);
  spec.mutable_student()->mutable_workers()->set_max(1);
  StartWorker(4);
  const std::string job_id = Submit(spec, "r1");
  const v1::Job job = WaitForEnd(job_id);
  EXPECT_EQ(job.state(), v1::JOB_STATE_SUCCEEDED) << job.message();
  EXPECT_EQ(job.stages_size(), 5);
  EXPECT_EQ(last_role_, "student");
}

TEST_F(ServiceTest, MissingUploadIsRefused) {
  v1::SubmitJobRequest request;
  request.set_request_id("r");
  *request.mutable_spec() = TrainSpec(1, 1);
  v1::SubmitJobResponse response;
  Call call;
  const grpc::Status status = jobs_->SubmitJob(&call, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("not uploaded"));
}

TEST_F(ServiceTest, RestartOnTheSamePortGoesOn) {
  UploadInputs();
  const std::string job_id = Submit(TrainSpec(1, 1), "r1");
  const std::string address = server_->address();
  server_.reset();
  Start(address);
  EXPECT_EQ(Submit(TrainSpec(1, 1), "r1"), job_id);
  StartWorker(1);
  EXPECT_EQ(WaitForEnd(job_id).state(), v1::JOB_STATE_SUCCEEDED);
}

TEST_F(ServiceTest, NoOpTaskIsPlacedWithinMilliseconds) {
  UploadInputs();
  ASSERT_NO_FATAL_FAILURE(RegisterWorker("i", 4));
  v1::WatchAssignmentsRequest watch;
  watch.set_worker_id("w");
  watch.set_incarnation_id("i");
  Call watch_call;
  auto reader = workers_->WatchAssignments(&watch_call, watch);
  v1::WatchAssignmentsResponse assignments;
  ASSERT_TRUE(reader->Read(&assignments));
  EXPECT_EQ(assignments.assignments_size(), 0);
  absl::Duration best = absl::InfiniteDuration();
  for (int i = 0; i < 3; ++i) {
    const absl::Time start = absl::Now();
    Submit(TrainSpec(1, 1), absl::StrCat("r", i));
    ASSERT_TRUE(reader->Read(&assignments));
    best = std::min(best, absl::Now() - start);
    EXPECT_EQ(assignments.assignments_size(), i + 1);
  }
  EXPECT_LT(best, absl::Milliseconds(100));  // a few on an idle machine
  watch_call.TryCancel();
}

TEST_F(ServiceTest, RanksWaitForEachOther) {
  UploadInputs();
  ASSERT_NO_FATAL_FAILURE(RegisterWorker("i", 4));
  const std::string job_id = Submit(TrainSpec(2, 2), "r");
  v1::Job job = GetJob(job_id);
  for (int i = 0; i < 200 && job.stages(0).tasks(1).ref().epoch() == 0; ++i) {
    absl::SleepFor(absl::Milliseconds(10));
    job = GetJob(job_id);
  }
  std::vector<v1::JoinGangResponse> answers(2);
  std::vector<std::thread> ranks;
  for (int i = 0; i < 2; ++i) {
    ranks.emplace_back([&, i] {
      v1::JoinGangRequest join;
      *join.mutable_ref() = job.stages(0).tasks(i).ref();
      join.set_address(absl::StrCat("127.0.0.1:", 5000 + i));
      join.set_completed_steps(-1);
      Call join_call;
      const grpc::Status status = gangs_->JoinGang(&join_call, join, &answers[static_cast<size_t>(i)]);
      EXPECT_TRUE(status.ok()) << status.error_message();
    });
  }
  for (std::thread& rank : ranks) rank.join();
  EXPECT_EQ(answers[0].generation(), answers[1].generation());
  EXPECT_EQ(answers[0].group_secret(), answers[1].group_secret());
  EXPECT_NE(answers[0].rank(), answers[1].rank());
}

TEST_F(ServiceTest, ACheckpointThatTheDiskHasLostGivesWayToTheOneBefore) {
  UploadInputs();
  ASSERT_NO_FATAL_FAILURE(RegisterWorker("i", 4));
  const std::string job_id = Submit(TrainSpec(1, 1), "r");
  const auto placed_after = [&](uint64_t epoch) {
    v1::TaskRef ref = GetJob(job_id).stages(0).tasks(0).ref();
    for (int i = 0; i < 500 && ref.epoch() <= epoch; ++i) {
      absl::SleepFor(absl::Milliseconds(10));
      v1::HeartbeatRequest heartbeat;
      heartbeat.set_worker_id("w");
      heartbeat.set_incarnation_id("i");
      v1::HeartbeatResponse beaten;
      Call beat;
      workers_->Heartbeat(&beat, heartbeat, &beaten);
      ref = GetJob(job_id).stages(0).tasks(0).ref();
    }
    return ref;
  };
  const auto resume_step = [&](const v1::TaskRef& ref) {
    v1::GetTaskRequest get;
    *get.mutable_ref() = ref;
    v1::GetTaskResponse task;
    Call get_call;
    EXPECT_TRUE(tasks_->GetTask(&get_call, get, &task).ok());
    return task.train().resume_from().step();
  };
  v1::TaskRef ref = placed_after(0);
  for (const int step : {2, 4}) {
    v1::RegisterCheckpointRequest checkpoint;
    *checkpoint.mutable_ref() = ref;
    checkpoint.mutable_checkpoint()->set_step(step);
    checkpoint.mutable_checkpoint()->set_artifact_id(PutArtifact(absl::StrCat("checkpoint ", step)));
    v1::RegisterCheckpointResponse taken;
    Call register_call;
    ASSERT_TRUE(tasks_->RegisterCheckpoint(&register_call, checkpoint, &taken).ok());
  }
  v1::FailTaskRequest fail;
  fail.set_cause(v1::FAILURE_CAUSE_INFRASTRUCTURE);
  fail.set_message("checkpoint cannot be read");
  fail.set_unreadable_artifact_id(PutArtifact("checkpoint 4"));
  const auto fail_and_wait = [&] {
    *fail.mutable_ref() = ref;
    v1::FailTaskResponse failed;
    Call fail_call;
    EXPECT_TRUE(tasks_->FailTask(&fail_call, fail, &failed).ok());
    ref = placed_after(ref.epoch());
  };
  fail_and_wait();
  EXPECT_EQ(resume_step(ref), 4) << "the store's copy is whole: the fault was the task's";
  const std::string sha256 = Sha256Hex("checkpoint 4");
  const std::string blob = folder_ + "/coordinator/artifacts/blobs/" + sha256.substr(0, 2) + "/" + sha256;
  ASSERT_TRUE(std::filesystem::exists(blob));
  std::filesystem::resize_file(blob, 3);
  fail_and_wait();
  EXPECT_EQ(resume_step(ref), 2);
}

TEST_F(ServiceTest, LogsAreReadWhileTheyAreWritten) {
  UploadInputs();
  const std::string job_id = Submit(TrainSpec(1, 1), "r");
  StartWorker(1);
  const v1::Job job = WaitForEnd(job_id);
  v1::AppendTaskLogRequest append;
  append.set_worker_id("w");
  *append.mutable_ref() = job.stages(0).tasks(0).ref();
  append.set_data("loading\nstep 1\nunfinished");
  v1::AppendTaskLogResponse appended;
  Call call;
  ASSERT_TRUE(workers_->AppendTaskLog(&call, append, &appended).ok());
  EXPECT_EQ(appended.next_offset_bytes(), 25);
  v1::GetLogsRequest request;
  request.set_job_id(job_id);
  request.set_follow(true);
  Call logs_call;
  auto reader = jobs_->GetLogs(&logs_call, request);
  v1::GetLogsResponse response;
  std::string all;
  while (reader->Read(&response)) all += response.data();
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(all, "loading\nstep 1\nunfinished");
  append.mutable_ref()->set_task_id("../../../etc/x");
  Call bad_call;
  EXPECT_EQ(workers_->AppendTaskLog(&bad_call, append, &appended).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST_F(ServiceTest, SecondCoordinatorAndUsedPortAreClearErrors) {
  const auto second = CoordinatorServer::Start(folder_ + "/coordinator", {.token_file = folder_ + "/token"}, {});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another coordinator uses"));
  const auto port = CoordinatorServer::Start(folder_ + "/other",
                                             {.address = server_->address(), .token_file = folder_ + "/token"}, {});
  EXPECT_EQ(port.status().code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(ServiceTest, VersionNamesTheStateFolder) {
  v1::GetVersionResponse response;
  Call call;
  ASSERT_TRUE(jobs_->GetVersion(&call, {}, &response).ok());
  const std::string id = response.coordinator_id();
  EXPECT_FALSE(id.empty());
  const std::string address = server_->address();
  server_.reset();
  Start(address);
  Call again;
  ASSERT_TRUE(jobs_->GetVersion(&again, {}, &response).ok());
  EXPECT_EQ(response.coordinator_id(), id);
}

}  // namespace
}  // namespace retort
