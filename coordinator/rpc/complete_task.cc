#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {

grpc::Status TaskServiceImpl::CompleteTask(grpc::ServerContext*, const v1::CompleteTaskRequest* request,
                                           v1::CompleteTaskResponse*) {
  for (const v1::JobArtifact& artifact : request->result().artifacts()) {
    const auto stored = artifacts_->GetArtifact(artifact.artifact_id());
    if (!stored.ok())
      return ToGrpc(WithContext(stored.status(), "artifact \"" + artifact.name() + "\" must be stored first"));
  }
  return ToGrpc(core_->CompleteTask(request->ref(), request->result()));
}

}  // namespace retort
