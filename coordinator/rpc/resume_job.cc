#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {

grpc::Status JobServiceImpl::ResumeJob(grpc::ServerContext*, const v1::ResumeJobRequest* request,
                                       v1::ResumeJobResponse* response) {
  const auto state = core_->ResumeJob(request->request_id(), request->job_id());
  if (!state.ok()) return ToGrpc(state.status());
  response->set_state(*state);
  return grpc::Status::OK;
}

}  // namespace retort
