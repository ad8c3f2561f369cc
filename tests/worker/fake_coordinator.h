// The coordinator's side of WorkerService, in the test's own process: it remembers what workers say and tells them what
// the test wants.
#pragma once

#include <grpcpp/server.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "retort/v1/worker.grpc.pb.h"
#include "worker/reconcile.h"

namespace retort::worker {

class FakeCoordinator final : public v1::WorkerService::Service {
 public:
  FakeCoordinator();
  ~FakeCoordinator() override;

  // Stops serving; Start serves again on the same port, with the same memory (as a restarted coordinator has).
  void Stop();
  void Start();
  std::string address() const;

  void Assign(std::vector<v1::Assignment> assignments);
  // Answers heartbeats and registrations with UNAVAILABLE.
  void set_deaf(bool deaf);
  // Answers heartbeats with NOT_FOUND until the worker registers.
  void ForgetWorkers();
  void set_lease_ttl(int64_t millis);

  std::vector<v1::RegisterWorkerRequest> registrations();
  std::vector<v1::TaskExit> exits();
  std::string log(const TaskKey& task);
  // Whether a heartbeat said that the worker ends, and how many exits were known then (-1: none said so).
  int exits_before_stop();
  // Of the last heartbeat.
  std::vector<v1::RunningTask> running();

  grpc::Status RegisterWorker(grpc::ServerContext*, const v1::RegisterWorkerRequest*,
                              v1::RegisterWorkerResponse*) override;
  grpc::Status Heartbeat(grpc::ServerContext*, const v1::HeartbeatRequest*, v1::HeartbeatResponse*) override;
  grpc::Status WatchAssignments(grpc::ServerContext*, const v1::WatchAssignmentsRequest*,
                                grpc::ServerWriter<v1::WatchAssignmentsResponse>*) override;
  grpc::Status ReportTaskExit(grpc::ServerContext*, const v1::ReportTaskExitRequest*,
                              v1::ReportTaskExitResponse*) override;
  grpc::Status AppendTaskLog(grpc::ServerContext*, const v1::AppendTaskLogRequest*,
                             v1::AppendTaskLogResponse*) override;

 private:
  std::mutex mu_;
  int port_ = 0;
  bool stopping_ = false;
  bool deaf_ = false;
  bool known_ = false;
  int64_t lease_ttl_millis_ = 10'000;
  int64_t revision_ = 1;
  std::vector<v1::Assignment> assignments_;
  std::vector<v1::RegisterWorkerRequest> registrations_;
  std::vector<v1::TaskExit> exits_;
  std::map<TaskKey, std::string> logs_;
  std::vector<v1::RunningTask> running_;
  int exits_before_stop_ = -1;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace retort::worker
