#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status SampleServiceImpl::ImportTraces(grpc::ServerContext* context, const v1::ImportTracesRequest* request,
                                             v1::ImportTracesResponse* response) {
  auto result = store_->ImportTraces(*request);
  if (!result.ok()) return ToGrpc(result.status());
  *response = *std::move(result);
  return grpc::Status::OK;
}

}  // namespace retort::storage
