// A whole coordinator in one object: state, stores, duties and the listening server.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/rpc/server_security.h"
#include "coordinator/background/sweep_artifacts.h"
#include "coordinator/core.h"
#include "coordinator/log_store.h"
#include "coordinator/rpc/services.h"
#include "storage/artifact_store.h"
#include "storage/rpc/services.h"
#include "storage/sample_store.h"

namespace retort {

class CoordinatorServer {
 public:
  // Opens everything under `state_dir` (made when absent), goes on where an earlier coordinator stopped, and listens.
  // Errors: kUnavailable (another coordinator uses the folder), kAlreadyExists (the port is used), kDataLoss,
  // kInvalidArgument, kPermissionDenied, kResourceExhausted.
  static absl::StatusOr<std::unique_ptr<CoordinatorServer>> Start(const std::string& state_dir,
                                                                  const ServerOptions& server,
                                                                  const CoordinatorOptions& options,
                                                                  const Clock* clock = &SystemClock());
  // Stops at once; what was acknowledged is on disk.
  ~CoordinatorServer();

  const std::string& address() const { return server_->address(); }
  Core* core() { return core_.get(); }

 private:
  CoordinatorServer() = default;

  // In the order of construction: what stands above outlives what stands below.
  std::unique_ptr<StateLog> log_;
  std::unique_ptr<storage::SampleStore> samples_;
  std::unique_ptr<storage::ArtifactStore> artifacts_;
  std::unique_ptr<LogStore> task_logs_;
  std::unique_ptr<Core> core_;
  std::unique_ptr<ArtifactSweeper> sweeper_;
  std::unique_ptr<JobServiceImpl> job_service_;
  std::unique_ptr<TaskServiceImpl> task_service_;
  std::unique_ptr<WorkerServiceImpl> worker_service_;
  std::unique_ptr<RendezvousServiceImpl> rendezvous_service_;
  std::unique_ptr<storage::SampleServiceImpl> sample_service_;
  std::unique_ptr<storage::ArtifactServiceImpl> artifact_service_;
  std::unique_ptr<RpcServer> server_;
};

}  // namespace retort
