#include "common/log.h"
#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {

grpc::Status TaskServiceImpl::FailTask(grpc::ServerContext*, const v1::FailTaskRequest* request,
                                       v1::FailTaskResponse*) {
  // A task that could not read a folder may have a fault of its own, so this side looks itself.
  std::string damaged;
  if (!request->unreadable_artifact_id().empty()) {
    const absl::Status verified = artifacts_->VerifyArtifact(request->unreadable_artifact_id());
    spdlog::warn("artifact_verified artifact_id={} status=\"{}\"", request->unreadable_artifact_id(),
                 verified.ToString());
    if (absl::IsDataLoss(verified) || absl::IsNotFound(verified)) damaged = request->unreadable_artifact_id();
  }
  return ToGrpc(core_->FailTask(request->ref(), request->cause(), request->message(), damaged));
}

}  // namespace retort
