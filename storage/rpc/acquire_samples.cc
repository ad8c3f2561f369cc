#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status SampleServiceImpl::AcquireSamples(grpc::ServerContext* context, const v1::AcquireSamplesRequest* request,
                                               v1::AcquireSamplesResponse* response) {
  auto result = store_->AcquireSamples(*request, *fence_);
  if (!result.ok()) return ToGrpc(result.status());
  *response = *std::move(result);
  return grpc::Status::OK;
}

}  // namespace retort::storage
