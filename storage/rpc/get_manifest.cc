#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status SampleServiceImpl::GetManifest(grpc::ServerContext* context, const v1::GetManifestRequest* request,
                                            v1::GetManifestResponse* response) {
  auto result = store_->GetManifest(request->manifest_sha256());
  if (!result.ok()) return ToGrpc(result.status());
  *response->mutable_manifest() = *std::move(result);
  return grpc::Status::OK;
}

}  // namespace retort::storage
