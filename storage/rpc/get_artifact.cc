#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status ArtifactServiceImpl::GetArtifact(grpc::ServerContext* context, const v1::GetArtifactRequest* request,
                                              v1::GetArtifactResponse* response) {
  auto result = store_->GetArtifact(request->artifact_id());
  if (!result.ok()) return ToGrpc(result.status());
  *response->mutable_artifact() = *std::move(result);
  return grpc::Status::OK;
}

}  // namespace retort::storage
