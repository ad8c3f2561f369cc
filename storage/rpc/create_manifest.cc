#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status SampleServiceImpl::CreateManifest(grpc::ServerContext* context, const v1::CreateManifestRequest* request,
                                               v1::CreateManifestResponse* response) {
  auto result = store_->CreateManifest(*request, *fence_);
  if (!result.ok()) return ToGrpc(result.status());
  response->set_manifest_sha256(*result);
  return grpc::Status::OK;
}

}  // namespace retort::storage
