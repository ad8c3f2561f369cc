#include <utility>

#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {

grpc::Status TaskServiceImpl::GetTask(grpc::ServerContext*, const v1::GetTaskRequest* request,
                                      v1::GetTaskResponse* response) {
  auto task = core_->GetTask(request->ref());
  if (!task.ok()) return ToGrpc(task.status());
  *response = *std::move(task);
  return grpc::Status::OK;
}

}  // namespace retort
