#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status SampleServiceImpl::GetSampleSet(grpc::ServerContext* context, const v1::GetSampleSetRequest* request,
                                             v1::GetSampleSetResponse* response) {
  auto result = store_->GetSampleSet(request->sample_set_id());
  if (!result.ok()) return ToGrpc(result.status());
  *response->mutable_info() = *std::move(result);
  return grpc::Status::OK;
}

}  // namespace retort::storage
