#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status SampleServiceImpl::SavePartials(grpc::ServerContext* context, const v1::SavePartialsRequest* request,
                                             v1::SavePartialsResponse* response) {
  auto result = store_->SavePartials(*request, *fence_);
  if (!result.ok()) return ToGrpc(result.status());
  *response = *std::move(result);
  return grpc::Status::OK;
}

}  // namespace retort::storage
