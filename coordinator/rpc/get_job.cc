#include <utility>

#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {

grpc::Status JobServiceImpl::GetJob(grpc::ServerContext*, const v1::GetJobRequest* request,
                                    v1::GetJobResponse* response) {
  auto job = core_->GetJob(request->job_id());
  if (!job.ok()) return ToGrpc(job.status());
  *response->mutable_job() = *std::move(job);
  return grpc::Status::OK;
}

}  // namespace retort
