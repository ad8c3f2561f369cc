#include <utility>

#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {

grpc::Status JobServiceImpl::ListWorkers(grpc::ServerContext*, const v1::ListWorkersRequest*,
                                         v1::ListWorkersResponse* response) {
  auto workers = core_->ListWorkers();
  if (!workers.ok()) return ToGrpc(workers.status());
  for (v1::WorkerStatus& worker : *workers) *response->add_workers() = std::move(worker);
  return grpc::Status::OK;
}

}  // namespace retort
