#include <string>
#include <utility>

#include "absl/time/clock.h"
#include "common/status.h"
#include "coordinator/rpc/services.h"
#include "coordinator/transitions.h"

namespace retort {
namespace {

constexpr absl::Duration kMinInterval = absl::Milliseconds(100);
constexpr absl::Duration kJobWait = absl::Seconds(10);

}  // namespace

grpc::Status JobServiceImpl::WatchJob(grpc::ServerContext* context, const v1::WatchJobRequest* request,
                                      grpc::ServerWriter<v1::WatchJobResponse>* writer) {
  const auto cancelled = [&] { return context->IsCancelled(); };
  std::string job_id = request->job_id();
  uint64_t seen = 0;
  while (!context->IsCancelled()) {
    auto view = core_->WaitJob(job_id, seen, kJobWait, cancelled);
    if (absl::IsDeadlineExceeded(view.status())) continue;
    if (!view.ok()) return ToGrpc(view.status());
    seen = view->revision;
    job_id = view->job.job_id();  // a name may come to mean a newer job
    const bool ended = HasEnded(view->job.state());
    v1::WatchJobResponse response;
    *response.mutable_job() = std::move(view->job);
    if (!writer->Write(response) || ended) break;
    absl::SleepFor(kMinInterval);
  }
  return grpc::Status::OK;
}

}  // namespace retort
