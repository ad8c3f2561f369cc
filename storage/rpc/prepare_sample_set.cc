#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status SampleServiceImpl::PrepareSampleSet(grpc::ServerContext* context,
                                                 const v1::PrepareSampleSetRequest* request,
                                                 v1::PrepareSampleSetResponse* response) {
  return ToGrpc(store_->PrepareSampleSet(*request, *fence_));
}

}  // namespace retort::storage
