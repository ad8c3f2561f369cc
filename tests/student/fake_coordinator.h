// The coordinator as a rank sees it, in this process and in memory: tasks with epochs, a gang, artifacts.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/rpc/server_security.h"
#include "retort/v1/artifact_service.grpc.pb.h"
#include "retort/v1/rendezvous_service.grpc.pb.h"
#include "retort/v1/task_service.grpc.pb.h"

namespace retort::testing {

// Thread-safe.
class FakeCoordinator final : public v1::TaskService::Service,
                              public v1::RendezvousService::Service,
                              public v1::ArtifactService::Service {
 public:
  // Keeps its token file in `folder`.
  explicit FakeCoordinator(const std::string& folder);
  ~FakeCoordinator() override;

  const std::string& address() const { return server_->address(); }
  const std::string& token_file() const { return token_file_; }

  // Stores a file and returns its reference.
  v1::BlobRef Put(const std::string& contents);
  // Every task's answer from now on.
  void SetTask(const v1::GetTaskResponse& task);
  // Gives a task to a process: a new epoch. The gang waits for it from now on.
  uint64_t Place(const std::string& task_id);

  struct Outcome {
    std::map<std::string, v1::TaskResult> results;  // by task
    std::map<std::string, std::string> failures;
    std::map<int64_t, v1::LossPoint> losses;
    v1::Checkpoint checkpoint;  // the newest registered
    std::vector<int> gang_sizes;
  };
  Outcome outcome() const;
  // Until `done` steps are reported, or time is up.
  bool AwaitSteps(int64_t done, absl::Duration timeout);
  // A file of an artifact; empty when there is none.
  std::string FileOf(const std::string& artifact_id, const std::string& path) const;

  grpc::Status GetTask(grpc::ServerContext*, const v1::GetTaskRequest*, v1::GetTaskResponse*) override;
  grpc::Status ReportProgress(grpc::ServerContext*, const v1::ReportProgressRequest*,
                              v1::ReportProgressResponse*) override;
  grpc::Status RegisterCheckpoint(grpc::ServerContext*, const v1::RegisterCheckpointRequest*,
                                  v1::RegisterCheckpointResponse*) override;
  grpc::Status CompleteTask(grpc::ServerContext*, const v1::CompleteTaskRequest*, v1::CompleteTaskResponse*) override;
  grpc::Status FailTask(grpc::ServerContext*, const v1::FailTaskRequest*, v1::FailTaskResponse*) override;
  grpc::Status JoinGang(grpc::ServerContext*, const v1::JoinGangRequest*, v1::JoinGangResponse*) override;
  grpc::Status PutBlob(grpc::ServerContext*, grpc::ServerReader<v1::PutBlobRequest>*, v1::PutBlobResponse*) override;
  grpc::Status GetBlob(grpc::ServerContext*, const v1::GetBlobRequest*,
                       grpc::ServerWriter<v1::GetBlobResponse>*) override;
  grpc::Status StatBlobs(grpc::ServerContext*, const v1::StatBlobsRequest*, v1::StatBlobsResponse*) override;
  grpc::Status PutArtifact(grpc::ServerContext*, const v1::PutArtifactRequest*, v1::PutArtifactResponse*) override;
  grpc::Status GetArtifact(grpc::ServerContext*, const v1::GetArtifactRequest*, v1::GetArtifactResponse*) override;

 private:
  grpc::Status CheckFence(const v1::TaskRef& ref) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool AllJoined() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  std::string token_file_;
  mutable absl::Mutex mu_;
  v1::GetTaskResponse task_ ABSL_GUARDED_BY(mu_);
  uint64_t next_number_ ABSL_GUARDED_BY(mu_) = 1;  // of epochs and generations
  std::map<std::string, uint64_t> placed_ ABSL_GUARDED_BY(mu_);
  uint64_t wanted_generation_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<std::string, v1::GangMember> joined_ ABSL_GUARDED_BY(mu_);
  v1::JoinGangResponse formed_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, v1::GangMember> formed_members_ ABSL_GUARDED_BY(mu_);
  int64_t steps_ ABSL_GUARDED_BY(mu_) = 0;
  Outcome outcome_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, std::string> blobs_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, v1::Artifact> artifacts_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<RpcServer> server_;
};

}  // namespace retort::testing
