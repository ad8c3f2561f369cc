#include "common/rpc/artifact_listing.h"

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/status.h"

namespace retort {

absl::Status ValidateBlobRef(const v1::BlobRef& blob) {
  if (!IsSha256Hex(blob.sha256()))
    return absl::InvalidArgumentError("blob sha256: must be 64 lower-case hexadecimal digits");
  if (blob.size_bytes() < 0) return absl::InvalidArgumentError("blob size_bytes: must not be negative");
  return absl::OkStatus();
}

absl::Status ValidateListing(const google::protobuf::RepeatedPtrField<v1::ArtifactFile>& files) {
  if (files.size() > kMaxArtifactFiles) {
    return absl::InvalidArgumentError(
        absl::StrCat("folder of ", files.size(), " files: at most ", kMaxArtifactFiles, " are stored"));
  }
  absl::flat_hash_set<std::string> paths;
  const std::string* previous = nullptr;
  for (const v1::ArtifactFile& file : files) {
    RETURN_IF_ERROR(JoinBelow("", file.path()).status());
    RETURN_IF_ERROR(WithContext(ValidateBlobRef(file.blob()), file.path()));
    if (previous != nullptr && !(*previous < file.path())) {
      return absl::InvalidArgumentError(absl::StrCat("file ", file.path(), ": listed twice or out of order"));
    }
    previous = &file.path();
    paths.insert(file.path());
  }
  for (const v1::ArtifactFile& file : files) {
    for (size_t slash = file.path().find('/'); slash != std::string::npos; slash = file.path().find('/', slash + 1)) {
      if (paths.contains(file.path().substr(0, slash)))
        return absl::InvalidArgumentError(absl::StrCat("file ", file.path(), ": its folder is listed as a file too"));
    }
  }
  return absl::OkStatus();
}

std::string ArtifactIdOf(const google::protobuf::RepeatedPtrField<v1::ArtifactFile>& files) {
  Sha256 hash;
  hash.UpdateField("retort artifact 1");
  hash.UpdateU64(static_cast<uint64_t>(files.size()));
  for (const v1::ArtifactFile& file : files) {
    hash.UpdateField(file.path());
    hash.UpdateField(file.blob().sha256());
    hash.UpdateU64(static_cast<uint64_t>(file.blob().size_bytes()));
  }
  return ToHex(hash.Finish());
}

}  // namespace retort
