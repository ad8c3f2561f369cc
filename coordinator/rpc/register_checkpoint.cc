#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {

grpc::Status TaskServiceImpl::RegisterCheckpoint(grpc::ServerContext*, const v1::RegisterCheckpointRequest* request,
                                                 v1::RegisterCheckpointResponse*) {
  const auto artifact = artifacts_->GetArtifact(request->checkpoint().artifact_id());
  if (!artifact.ok()) return ToGrpc(WithContext(artifact.status(), "the checkpoint's folder must be stored first"));
  int64_t size_bytes = 0;
  for (const v1::ArtifactFile& file : artifact->files()) size_bytes += file.blob().size_bytes();
  return ToGrpc(core_->RegisterCheckpoint(request->ref(), request->checkpoint(), size_bytes));
}

}  // namespace retort
