#include "tests/worker/fake_coordinator.h"

#include <grpcpp/server_builder.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace retort::worker {

FakeCoordinator::FakeCoordinator() { Start(); }
FakeCoordinator::~FakeCoordinator() { Stop(); }

void FakeCoordinator::Start() {
  {
    std::lock_guard<std::mutex> lock(mu_);
    stopping_ = false;
    known_ = false;
  }
  grpc::ServerBuilder builder;
  int bound = 0;
  builder.AddListeningPort(absl::StrCat("127.0.0.1:", port_), grpc::InsecureServerCredentials(), &bound);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  RETORT_CHECK(server_ != nullptr);
  port_ = bound;
}

void FakeCoordinator::Stop() {
  {
    std::lock_guard<std::mutex> lock(mu_);
    stopping_ = true;
  }
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  server_.reset();
}

std::string FakeCoordinator::address() const { return absl::StrCat("127.0.0.1:", port_); }

void FakeCoordinator::Assign(std::vector<v1::Assignment> assignments) {
  std::lock_guard<std::mutex> lock(mu_);
  assignments_ = std::move(assignments);
  ++revision_;
}

void FakeCoordinator::set_deaf(bool deaf) {
  std::lock_guard<std::mutex> lock(mu_);
  deaf_ = deaf;
}

void FakeCoordinator::ForgetWorkers() {
  std::lock_guard<std::mutex> lock(mu_);
  known_ = false;
}

void FakeCoordinator::set_lease_ttl(int64_t millis) {
  std::lock_guard<std::mutex> lock(mu_);
  lease_ttl_millis_ = millis;
}

std::vector<v1::RegisterWorkerRequest> FakeCoordinator::registrations() {
  std::lock_guard<std::mutex> lock(mu_);
  return registrations_;
}

std::vector<v1::TaskExit> FakeCoordinator::exits() {
  std::lock_guard<std::mutex> lock(mu_);
  return exits_;
}

std::string FakeCoordinator::log(const TaskKey& task) {
  std::lock_guard<std::mutex> lock(mu_);
  return logs_[task];
}

int FakeCoordinator::exits_before_stop() {
  std::lock_guard<std::mutex> lock(mu_);
  return exits_before_stop_;
}

std::vector<v1::RunningTask> FakeCoordinator::running() {
  std::lock_guard<std::mutex> lock(mu_);
  return running_;
}

grpc::Status FakeCoordinator::RegisterWorker(grpc::ServerContext*, const v1::RegisterWorkerRequest* request,
                                             v1::RegisterWorkerResponse* response) {
  std::lock_guard<std::mutex> lock(mu_);
  if (deaf_) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "deaf");
  registrations_.push_back(*request);
  known_ = true;
  response->set_heartbeat_interval_millis(20);
  response->set_lease_ttl_millis(lease_ttl_millis_);
  return grpc::Status::OK;
}

grpc::Status FakeCoordinator::Heartbeat(grpc::ServerContext*, const v1::HeartbeatRequest* request,
                                        v1::HeartbeatResponse*) {
  std::lock_guard<std::mutex> lock(mu_);
  if (deaf_) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "deaf");
  if (!known_) return grpc::Status(grpc::StatusCode::NOT_FOUND, "register");
  if (request->stopping() && exits_before_stop_ < 0) exits_before_stop_ = static_cast<int>(exits_.size());
  running_.assign(request->running().begin(), request->running().end());
  return grpc::Status::OK;
}

grpc::Status FakeCoordinator::WatchAssignments(grpc::ServerContext* context, const v1::WatchAssignmentsRequest*,
                                               grpc::ServerWriter<v1::WatchAssignmentsResponse>* writer) {
  int64_t sent = 0;
  while (!context->IsCancelled()) {
    v1::WatchAssignmentsResponse response;
    {
      std::lock_guard<std::mutex> lock(mu_);
      if (stopping_) break;
      response.set_revision(revision_);
      for (const v1::Assignment& assignment : assignments_) *response.add_assignments() = assignment;
    }
    if (response.revision() != sent) {
      sent = response.revision();
      if (!writer->Write(response)) break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return grpc::Status(grpc::StatusCode::UNAVAILABLE, "stream ended");
}

grpc::Status FakeCoordinator::ReportTaskExit(grpc::ServerContext*, const v1::ReportTaskExitRequest* request,
                                             v1::ReportTaskExitResponse*) {
  std::lock_guard<std::mutex> lock(mu_);
  exits_.push_back(request->exit());
  return grpc::Status::OK;
}

grpc::Status FakeCoordinator::AppendTaskLog(grpc::ServerContext*, const v1::AppendTaskLogRequest* request,
                                            v1::AppendTaskLogResponse* response) {
  std::lock_guard<std::mutex> lock(mu_);
  std::string& log = logs_[KeyOf(request->ref())];
  const auto offset = static_cast<size_t>(request->offset_bytes());
  if (offset <= log.size() && offset + request->data().size() > log.size())
    log += request->data().substr(log.size() - offset);
  response->set_next_offset_bytes(static_cast<int64_t>(log.size()));
  return grpc::Status::OK;
}

}  // namespace retort::worker
