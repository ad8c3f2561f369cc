#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {
namespace {

constexpr size_t kMaxDataBytes = 1 << 20;

}  // namespace

grpc::Status WorkerServiceImpl::AppendTaskLog(grpc::ServerContext*, const v1::AppendTaskLogRequest* request,
                                              v1::AppendTaskLogResponse* response) {
  if (request->data().size() > kMaxDataBytes) return ToGrpc(absl::InvalidArgumentError("data: at most 1 MiB"));
  if (const absl::Status status = core_->CheckTaskLog(request->ref()); !status.ok()) return ToGrpc(status);
  const auto next =
      logs_->Append(JobIdOfTask(request->ref().task_id()), request->ref(), request->offset_bytes(), request->data());
  if (!next.ok()) return ToGrpc(next.status());
  response->set_next_offset_bytes(*next);
  return grpc::Status::OK;
}

}  // namespace retort
