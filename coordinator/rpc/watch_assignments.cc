#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {
namespace {

constexpr absl::Duration kAssignmentsWait = absl::Seconds(10);

}  // namespace

grpc::Status WorkerServiceImpl::WatchAssignments(grpc::ServerContext* context,
                                                 const v1::WatchAssignmentsRequest* request,
                                                 grpc::ServerWriter<v1::WatchAssignmentsResponse>* writer) {
  const auto cancelled = [&] { return context->IsCancelled(); };
  int64_t seen = 0;
  while (!context->IsCancelled()) {
    const auto assignments = core_->WaitAssignments(*request, seen, kAssignmentsWait, cancelled);
    if (absl::IsDeadlineExceeded(assignments.status())) continue;
    if (!assignments.ok()) return ToGrpc(assignments.status());
    seen = assignments->revision();
    if (!writer->Write(*assignments)) break;
  }
  return grpc::Status::OK;
}

}  // namespace retort
