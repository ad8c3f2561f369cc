#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {

grpc::Status JobServiceImpl::SubmitJob(grpc::ServerContext*, const v1::SubmitJobRequest* request,
                                       v1::SubmitJobResponse* response) {
  for (const v1::BlobRef& blob : BlobsOf(request->spec())) {
    if (!blob.sha256().empty() && !artifacts_->HasBlob(blob.sha256())) {
      return ToGrpc(
          absl::FailedPreconditionError(absl::StrCat("file ", blob.sha256(), " of the job spec was not uploaded")));
    }
  }
  const auto job_id = core_->SubmitJob(request->request_id(), request->spec());
  if (!job_id.ok()) return ToGrpc(job_id.status());
  response->set_job_id(*job_id);
  return grpc::Status::OK;
}

}  // namespace retort
