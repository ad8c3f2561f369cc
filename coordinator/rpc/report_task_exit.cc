#include "common/status.h"
#include "coordinator/rpc/services.h"

namespace retort {

grpc::Status WorkerServiceImpl::ReportTaskExit(grpc::ServerContext*, const v1::ReportTaskExitRequest* request,
                                               v1::ReportTaskExitResponse*) {
  return ToGrpc(core_->ReportTaskExit(*request));
}

}  // namespace retort
