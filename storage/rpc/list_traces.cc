#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status SampleServiceImpl::ListTraces(grpc::ServerContext* context, const v1::ListTracesRequest* request,
                                           grpc::ServerWriter<v1::ListTracesResponse>* writer) {
  return ToGrpc(store_->ListTraces(*request, [&](const v1::ListTracesResponse& batch) {
    return writer->Write(batch) ? absl::OkStatus() : absl::CancelledError("the reader has gone");
  }));
}

}  // namespace retort::storage
