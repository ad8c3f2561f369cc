#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {
namespace {

constexpr size_t kMaxDataBytes = 1 << 20;

absl::Status Receive(ArtifactStore* store, grpc::ServerContext* context, grpc::ServerReader<v1::PutBlobRequest>* reader,
                     v1::PutBlobResponse* response) {
  v1::PutBlobRequest request;
  if (!reader->Read(&request)) return absl::InvalidArgumentError("put blob: no message came");
  if (!request.data().empty())
    return absl::InvalidArgumentError("put blob: the first message must name the blob, without data");
  *response->mutable_blob() = request.blob();
  ASSIGN_OR_RETURN(const std::unique_ptr<BlobWriter> writer, store->StartBlob(response->blob()));
  if (writer == nullptr) return absl::OkStatus();
  while (reader->Read(&request)) {
    if (request.data().size() > kMaxDataBytes)
      return absl::InvalidArgumentError("put blob: over 1 MiB of data in one message");
    RETURN_IF_ERROR(writer->Append(request.data()));
  }
  if (context->IsCancelled()) return absl::CancelledError("put blob: the sender has gone");
  return writer->Commit();
}

}  // namespace

grpc::Status ArtifactServiceImpl::PutBlob(grpc::ServerContext* context, grpc::ServerReader<v1::PutBlobRequest>* reader,
                                          v1::PutBlobResponse* response) {
  return ToGrpc(Receive(store_, context, reader, response));
}

}  // namespace retort::storage
