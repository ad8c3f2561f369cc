#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status SampleServiceImpl::CommitTraces(grpc::ServerContext* context, const v1::CommitTracesRequest* request,
                                             v1::CommitTracesResponse* response) {
  auto result = store_->CommitTraces(*request, *fence_);
  if (!result.ok()) return ToGrpc(result.status());
  *response = *std::move(result);
  return grpc::Status::OK;
}

}  // namespace retort::storage
