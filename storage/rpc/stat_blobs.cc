#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status ArtifactServiceImpl::StatBlobs(grpc::ServerContext* context, const v1::StatBlobsRequest* request,
                                            v1::StatBlobsResponse* response) {
  for (const std::string& sha256 : request->sha256()) response->add_present(store_->HasBlob(sha256));
  return grpc::Status::OK;
}

}  // namespace retort::storage
