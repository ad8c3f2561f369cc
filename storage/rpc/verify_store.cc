#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status SampleServiceImpl::VerifyStore(grpc::ServerContext* context, const v1::VerifyStoreRequest* request,
                                            v1::VerifyStoreResponse* response) {
  auto result = store_->Verify();
  if (!result.ok()) return ToGrpc(result.status());
  *response = *std::move(result);
  return grpc::Status::OK;
}

}  // namespace retort::storage
