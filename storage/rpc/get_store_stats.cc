#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status SampleServiceImpl::GetStoreStats(grpc::ServerContext* context, const v1::GetStoreStatsRequest* request,
                                              v1::GetStoreStatsResponse* response) {
  auto result = store_->GetStats();
  if (!result.ok()) return ToGrpc(result.status());
  *response = *std::move(result);
  return grpc::Status::OK;
}

}  // namespace retort::storage
