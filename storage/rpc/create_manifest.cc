#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "storage/manifest.h"
#include "storage/rpc/services.h"

namespace retort::storage {
namespace {

absl::StatusOr<v1::CreateManifestRequest> Receive(grpc::ServerContext* context,
                                                  grpc::ServerReader<v1::CreateManifestRequest>* reader) {
  v1::CreateManifestRequest whole;
  if (!reader->Read(&whole)) return absl::InvalidArgumentError("create manifest: no message came");
  v1::CreateManifestRequest slice;
  while (reader->Read(&slice)) {
    auto& keys = *whole.mutable_manifest()->mutable_keys();
    if (keys.size() + slice.manifest().keys_size() > kMaxManifestKeys)
      return absl::InvalidArgumentError(absl::StrCat("create manifest: more than ", kMaxManifestKeys, " keys"));
    for (v1::TraceKey& key : *slice.mutable_manifest()->mutable_keys()) *keys.Add() = std::move(key);
  }
  if (context->IsCancelled()) return absl::CancelledError("create manifest: the sender has gone");
  return whole;
}

}  // namespace

grpc::Status SampleServiceImpl::CreateManifest(grpc::ServerContext* context,
                                               grpc::ServerReader<v1::CreateManifestRequest>* reader,
                                               v1::CreateManifestResponse* response) {
  const auto request = Receive(context, reader);
  if (!request.ok()) return ToGrpc(request.status());
  auto result = store_->CreateManifest(*request, *fence_);
  if (!result.ok()) return ToGrpc(result.status());
  response->set_manifest_sha256(*result);
  return grpc::Status::OK;
}

}  // namespace retort::storage
