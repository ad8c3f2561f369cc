#include <utility>

#include "common/status.h"
#include "storage/rpc/services.h"

namespace retort::storage {
namespace {

constexpr int kSliceKeys = 10'000;  // about 1 MiB

}  // namespace

grpc::Status SampleServiceImpl::GetManifest(grpc::ServerContext*, const v1::GetManifestRequest* request,
                                            grpc::ServerWriter<v1::GetManifestResponse>* writer) {
  auto manifest = store_->GetManifest(request->manifest_sha256());
  if (!manifest.ok()) return ToGrpc(manifest.status());
  google::protobuf::RepeatedPtrField<v1::TraceKey> keys;
  keys.Swap(manifest->mutable_keys());
  v1::GetManifestResponse response;
  *response.mutable_manifest() = *std::move(manifest);
  int next = 0;
  do {
    for (int i = 0; i < kSliceKeys && next < keys.size(); ++i)
      *response.mutable_manifest()->add_keys() = std::move(keys[next++]);
    if (!writer->Write(response)) return ToGrpc(absl::CancelledError("the reader has gone"));
    response.Clear();
  } while (next < keys.size());
  return grpc::Status::OK;
}

}  // namespace retort::storage
