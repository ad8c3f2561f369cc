#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status SampleServiceImpl::ListSampleSets(grpc::ServerContext* context, const v1::ListSampleSetsRequest* request,
                                               v1::ListSampleSetsResponse* response) {
  auto result = store_->ListSampleSets();
  if (!result.ok()) return ToGrpc(result.status());
  *response = *std::move(result);
  return grpc::Status::OK;
}

}  // namespace retort::storage
