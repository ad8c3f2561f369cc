#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {

grpc::Status ArtifactServiceImpl::GetBlob(grpc::ServerContext* context, const v1::GetBlobRequest* request,
                                          grpc::ServerWriter<v1::GetBlobResponse>* writer) {
  v1::GetBlobResponse response;
  return ToGrpc(
      store_->ReadBlob(request->sha256(), request->offset_bytes(), request->limit_bytes(), [&](absl::string_view data) {
        response.mutable_data()->assign(data.data(), data.size());
        return writer->Write(response) ? absl::OkStatus() : absl::CancelledError("the reader has gone");
      }));
}

}  // namespace retort::storage
