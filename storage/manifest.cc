#include "storage/manifest.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/hash.h"
#include "common/rpc/artifact_listing.h"
#include "common/rpc/manifest_hash.h"
#include "common/status.h"
#include "storage/sample_store_impl.h"

namespace retort::storage {

absl::Status ValidateManifest(const v1::Manifest& manifest) {
  if (manifest.keys_size() > kMaxManifestKeys)
    return absl::InvalidArgumentError(absl::StrCat("manifest: more than ", kMaxManifestKeys, " keys"));
  if (manifest.train_count() < 0 || manifest.validation_count() < 0 || manifest.train_count() > manifest.keys_size() ||
      manifest.validation_count() != manifest.keys_size() - manifest.train_count()) {
    return absl::InvalidArgumentError(absl::StrCat("manifest: ", manifest.keys_size(), " keys, but train_count is ",
                                                   manifest.train_count(), " and validation_count is ",
                                                   manifest.validation_count()));
  }
  if (manifest.has_train()) RETURN_IF_ERROR(WithContext(ValidateBlobRef(manifest.train()), "manifest.train"));
  if (manifest.has_validation())
    RETURN_IF_ERROR(WithContext(ValidateBlobRef(manifest.validation()), "manifest.validation"));
  for (int i = 0; i < manifest.keys_size(); ++i)
    RETURN_IF_ERROR(WithContext(EncodeTraceKey(manifest.keys(i)).status(), absl::StrCat("manifest.keys[", i, "]")));
  return absl::OkStatus();
}

absl::StatusOr<std::string> SampleStore::Impl::CreateManifest(const v1::CreateManifestRequest& request,
                                                              TaskFence& fence) {
  RETURN_IF_ERROR(CheckTaskRef(request.ref()));
  RETURN_IF_ERROR(ValidateManifest(request.manifest()));
  v1::Manifest manifest = request.manifest();
  manifest.set_manifest_sha256(ManifestHash(manifest));
  if (!request.manifest().manifest_sha256().empty() &&
      request.manifest().manifest_sha256() != manifest.manifest_sha256()) {
    return absl::DataLossError(absl::StrCat("manifest ", request.manifest().manifest_sha256(),
                                            ": what came has the hash ", manifest.manifest_sha256()));
  }
  // Traces are never removed, so they can be looked for outside the committer.
  for (const v1::TraceKey& key : manifest.keys()) {
    ASSIGN_OR_RETURN(const std::string encoded, EncodeTraceKey(key));
    const absl::Status found = database_->Get(database_->outcomes(), encoded).status();
    if (absl::IsNotFound(found)) return absl::NotFoundError("manifest: one of its keys has no trace in this store");
    RETURN_IF_ERROR(found);
  }
  const std::string bytes = manifest.SerializeAsString();
  RETURN_IF_ERROR(committer_.Run(bytes.size(), [&](Transaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(fence.Check(request.ref()));
    transaction.Put(database_->manifests(), manifest.manifest_sha256(), bytes);
    return absl::OkStatus();
  }));
  return manifest.manifest_sha256();
}

absl::StatusOr<v1::Manifest> SampleStore::Impl::GetManifest(absl::string_view manifest_sha256) {
  if (!IsSha256Hex(manifest_sha256))
    return absl::InvalidArgumentError("manifest_sha256: must be 64 lower-case hexadecimal digits");
  const auto bytes = database_->Get(database_->manifests(), manifest_sha256);
  if (absl::IsNotFound(bytes.status()))
    return absl::NotFoundError(absl::StrCat("manifest ", std::string(manifest_sha256), ": there is none of that hash"));
  if (!bytes.ok()) return bytes.status();
  return ParseRecord<v1::Manifest>(*bytes, "manifests");
}

}  // namespace retort::storage
