#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status ArtifactServiceImpl::PutArtifact(grpc::ServerContext* context, const v1::PutArtifactRequest* request,
                                              v1::PutArtifactResponse* response) {
  auto result = store_->PutArtifact(request->artifact());
  if (!result.ok()) return ToGrpc(result.status());
  response->set_artifact_id(*result);
  return grpc::Status::OK;
}

}  // namespace retort::storage
