#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {

grpc::Status JobServiceImpl::CancelJob(grpc::ServerContext*, const v1::CancelJobRequest* request,
                                       v1::CancelJobResponse* response) {
  const auto state = core_->CancelJob(request->request_id(), request->job_id());
  if (!state.ok()) return ToGrpc(state.status());
  response->set_state(*state);
  return grpc::Status::OK;
}

}  // namespace retort
