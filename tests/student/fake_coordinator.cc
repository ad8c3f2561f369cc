#include "tests/student/fake_coordinator.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/hash.h"
#include "common/rpc/artifact_listing.h"

namespace retort::testing {

FakeCoordinator::FakeCoordinator(const std::string& folder) : token_file_(folder + "/token") {
  RETORT_CHECK(EnsureTokenFile(token_file_).ok());
  ServerOptions options;
  options.token_file = token_file_;
  std::vector<grpc::Service*> services = {static_cast<v1::TaskService::Service*>(this),
                                          static_cast<v1::RendezvousService::Service*>(this),
                                          static_cast<v1::ArtifactService::Service*>(this)};
  auto server = RpcServer::Start(options, services);
  RETORT_CHECK(server.ok());
  server_ = *std::move(server);
}

FakeCoordinator::~FakeCoordinator() { server_->Stop(absl::ZeroDuration()); }

v1::BlobRef FakeCoordinator::Put(const std::string& contents) {
  v1::BlobRef blob;
  blob.set_sha256(Sha256Hex(contents));
  blob.set_size_bytes(static_cast<int64_t>(contents.size()));
  absl::MutexLock lock(&mu_);
  blobs_[blob.sha256()] = contents;
  return blob;
}

void FakeCoordinator::SetTask(const v1::GetTaskResponse& task) {
  absl::MutexLock lock(&mu_);
  task_ = task;
}

uint64_t FakeCoordinator::Place(const std::string& task_id) {
  absl::MutexLock lock(&mu_);
  placed_[task_id] = next_number_++;
  wanted_generation_ = next_number_++;
  joined_.erase(task_id);
  return placed_[task_id];
}

FakeCoordinator::Outcome FakeCoordinator::outcome() const {
  absl::MutexLock lock(&mu_);
  return outcome_;
}

bool FakeCoordinator::AwaitSteps(int64_t done, absl::Duration timeout) {
  absl::MutexLock lock(&mu_);
  const auto reached = [&] {
    mu_.AssertHeld();
    return steps_ >= done;
  };
  return mu_.AwaitWithTimeout(absl::Condition(&reached), timeout);
}

std::string FakeCoordinator::FileOf(const std::string& artifact_id, const std::string& path) const {
  absl::MutexLock lock(&mu_);
  const auto artifact = artifacts_.find(artifact_id);
  if (artifact == artifacts_.end()) return "";
  for (const v1::ArtifactFile& file : artifact->second.files()) {
    if (file.path() == path) return blobs_.at(file.blob().sha256());
  }
  return "";
}

grpc::Status FakeCoordinator::CheckFence(const v1::TaskRef& ref) const {
  const auto placed = placed_.find(ref.task_id());
  if (placed != placed_.end() && placed->second == ref.epoch()) return grpc::Status::OK;
  return {grpc::StatusCode::FAILED_PRECONDITION, "fenced"};
}

grpc::Status FakeCoordinator::GetTask(grpc::ServerContext*, const v1::GetTaskRequest* request,
                                      v1::GetTaskResponse* response) {
  absl::MutexLock lock(&mu_);
  if (auto fence = CheckFence(request->ref()); !fence.ok()) return fence;
  *response = task_;
  if (outcome_.checkpoint.step() > 0 && response->has_train()) {
    *response->mutable_train()->mutable_resume_from() = outcome_.checkpoint;
  }
  return grpc::Status::OK;
}

grpc::Status FakeCoordinator::ReportProgress(grpc::ServerContext*, const v1::ReportProgressRequest* request,
                                             v1::ReportProgressResponse* response) {
  absl::MutexLock lock(&mu_);
  if (auto fence = CheckFence(request->ref()); !fence.ok()) return fence;
  steps_ = std::max(steps_, request->progress().done());
  for (const v1::LossPoint& point : request->new_losses()) outcome_.losses[point.step()] = point;
  response->set_gang_generation(wanted_generation_);
  return grpc::Status::OK;
}

grpc::Status FakeCoordinator::RegisterCheckpoint(grpc::ServerContext*, const v1::RegisterCheckpointRequest* request,
                                                 v1::RegisterCheckpointResponse*) {
  absl::MutexLock lock(&mu_);
  if (auto fence = CheckFence(request->ref()); !fence.ok()) return fence;
  RETORT_CHECK(artifacts_.count(request->checkpoint().artifact_id()) > 0);
  if (request->checkpoint().step() > outcome_.checkpoint.step()) outcome_.checkpoint = request->checkpoint();
  return grpc::Status::OK;
}

grpc::Status FakeCoordinator::CompleteTask(grpc::ServerContext*, const v1::CompleteTaskRequest* request,
                                           v1::CompleteTaskResponse*) {
  absl::MutexLock lock(&mu_);
  if (auto fence = CheckFence(request->ref()); !fence.ok()) return fence;
  outcome_.results[request->ref().task_id()] = request->result();
  placed_.erase(request->ref().task_id());
  return grpc::Status::OK;
}

grpc::Status FakeCoordinator::FailTask(grpc::ServerContext*, const v1::FailTaskRequest* request,
                                       v1::FailTaskResponse*) {
  absl::MutexLock lock(&mu_);
  if (auto fence = CheckFence(request->ref()); !fence.ok()) return fence;
  outcome_.failures[request->ref().task_id()] =
      absl::StrCat(v1::FailureCause_Name(request->cause()), ": ", request->message());
  placed_.erase(request->ref().task_id());
  return grpc::Status::OK;
}

bool FakeCoordinator::AllJoined() const {
  return std::all_of(placed_.begin(), placed_.end(), [this](const auto& placed) {
    mu_.AssertHeld();
    const auto joined = joined_.find(placed.first);
    return joined != joined_.end() && joined->second.ref().epoch() == placed.second;
  });
}

grpc::Status FakeCoordinator::JoinGang(grpc::ServerContext* context, const v1::JoinGangRequest* request,
                                       v1::JoinGangResponse* response) {
  absl::MutexLock lock(&mu_);
  if (auto fence = CheckFence(request->ref()); !fence.ok()) return fence;
  v1::GangMember& member = joined_[request->ref().task_id()];
  *member.mutable_ref() = request->ref();
  member.set_address(request->address());
  member.set_completed_steps(request->completed_steps());
  if (wanted_generation_ <= request->last_generation()) wanted_generation_ = next_number_++;
  const auto is_member = [&] {
    mu_.AssertHeld();
    const auto found = formed_members_.find(request->ref().task_id());
    return formed_.generation() > request->last_generation() && found != formed_members_.end() &&
           found->second.ref().epoch() == request->ref().epoch();
  };
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  while (!is_member()) {
    if (AllJoined()) {
      formed_.Clear();
      formed_.set_generation(wanted_generation_);
      formed_.set_group_secret(std::string(32, static_cast<char>('a' + wanted_generation_ % 26)));
      for (const auto& [task_id, joined] : joined_) *formed_.add_members() = joined;
      formed_members_ = std::move(joined_);
      joined_.clear();
      outcome_.gang_sizes.push_back(formed_.members_size());
      continue;
    }
    if (context->IsCancelled() || absl::Now() > deadline) return {grpc::StatusCode::DEADLINE_EXCEEDED, "call again"};
    const auto changed = [&] {
      mu_.AssertHeld();
      return is_member() || AllJoined() || placed_.count(request->ref().task_id()) == 0 ||
             placed_.at(request->ref().task_id()) != request->ref().epoch();
    };
    mu_.AwaitWithTimeout(absl::Condition(&changed), absl::Milliseconds(100));
    if (auto fence = CheckFence(request->ref()); !fence.ok()) return fence;
  }
  *response = formed_;
  for (int rank = 0; rank < formed_.members_size(); ++rank) {
    if (formed_.members(rank).ref().task_id() == request->ref().task_id()) response->set_rank(rank);
  }
  return grpc::Status::OK;
}

grpc::Status FakeCoordinator::PutBlob(grpc::ServerContext*, grpc::ServerReader<v1::PutBlobRequest>* reader,
                                      v1::PutBlobResponse* response) {
  v1::PutBlobRequest request;
  std::string contents;
  while (reader->Read(&request)) contents += request.data();
  *response->mutable_blob() = Put(contents);
  return grpc::Status::OK;
}

grpc::Status FakeCoordinator::GetBlob(grpc::ServerContext*, const v1::GetBlobRequest* request,
                                      grpc::ServerWriter<v1::GetBlobResponse>* writer) {
  std::string contents;
  {
    absl::MutexLock lock(&mu_);
    const auto blob = blobs_.find(request->sha256());
    if (blob == blobs_.end()) return {grpc::StatusCode::NOT_FOUND, "no such blob"};
    contents = blob->second.substr(static_cast<size_t>(request->offset_bytes()));
  }
  for (size_t at = 0; at < contents.size(); at += 1 << 20) {
    v1::GetBlobResponse response;
    response.set_data(contents.substr(at, 1 << 20));
    writer->Write(response);
  }
  return grpc::Status::OK;
}

grpc::Status FakeCoordinator::StatBlobs(grpc::ServerContext*, const v1::StatBlobsRequest* request,
                                        v1::StatBlobsResponse* response) {
  absl::MutexLock lock(&mu_);
  for (const std::string& sha256 : request->sha256()) response->add_present(blobs_.count(sha256) > 0);
  return grpc::Status::OK;
}

grpc::Status FakeCoordinator::PutArtifact(grpc::ServerContext*, const v1::PutArtifactRequest* request,
                                          v1::PutArtifactResponse* response) {
  response->set_artifact_id(ArtifactIdOf(request->artifact().files()));
  absl::MutexLock lock(&mu_);
  v1::Artifact& artifact = artifacts_[response->artifact_id()];
  artifact = request->artifact();
  artifact.set_artifact_id(response->artifact_id());
  return grpc::Status::OK;
}

grpc::Status FakeCoordinator::GetArtifact(grpc::ServerContext*, const v1::GetArtifactRequest* request,
                                          v1::GetArtifactResponse* response) {
  absl::MutexLock lock(&mu_);
  const auto artifact = artifacts_.find(request->artifact_id());
  if (artifact == artifacts_.end()) return {grpc::StatusCode::NOT_FOUND, "no such artifact"};
  *response->mutable_artifact() = artifact->second;
  return grpc::Status::OK;
}

}  // namespace retort::testing
