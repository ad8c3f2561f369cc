#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {

grpc::Status TaskServiceImpl::ReportProgress(grpc::ServerContext*, const v1::ReportProgressRequest* request,
                                             v1::ReportProgressResponse* response) {
  const auto generation = core_->ReportProgress(*request);
  if (!generation.ok()) return ToGrpc(generation.status());
  response->set_gang_generation(*generation);
  return grpc::Status::OK;
}

}  // namespace retort
