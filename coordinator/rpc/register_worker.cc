#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {
namespace {

// Several heartbeats fall into the silence that makes a worker suspect.
constexpr int kHeartbeatsPerSuspicion = 4;

}  // namespace

grpc::Status WorkerServiceImpl::RegisterWorker(grpc::ServerContext*, const v1::RegisterWorkerRequest* request,
                                               v1::RegisterWorkerResponse* response) {
  if (const absl::Status status = core_->RegisterWorker(*request); !status.ok()) return ToGrpc(status);
  response->set_heartbeat_interval_millis(
      absl::ToInt64Milliseconds(core_->options().suspect_after / kHeartbeatsPerSuspicion));
  response->set_lease_ttl_millis(absl::ToInt64Milliseconds(core_->options().lost_after));
  return grpc::Status::OK;
}

}  // namespace retort
