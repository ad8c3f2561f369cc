#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {

grpc::Status WorkerServiceImpl::Heartbeat(grpc::ServerContext*, const v1::HeartbeatRequest* request,
                                          v1::HeartbeatResponse*) {
  return ToGrpc(core_->Heartbeat(*request));
}

}  // namespace retort
