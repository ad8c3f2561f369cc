#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {

grpc::Status TaskServiceImpl::FailTask(grpc::ServerContext*, const v1::FailTaskRequest* request,
                                       v1::FailTaskResponse*) {
  return ToGrpc(core_->FailTask(request->ref(), request->cause(), request->message()));
}

}  // namespace retort
