// Uploads to and downloads from the coordinator's artifact store.
//
// Everything is checked by SHA-256 on both ends and appears at its place whole or not at all. A stream that breaks (the
// coordinator restarts) is taken up again within `retry.total` of the last progress: uploads from the start, downloads
// from where they stopped. What is stored already is not sent again. Thread-safe.
#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/rpc/retry.h"
#include "retort/v1/artifact_service.grpc.pb.h"

namespace retort {

class ArtifactClient {
 public:
  // `retry.attempt` bounds the silence on a stream's first answer, not a whole transfer.
  explicit ArtifactClient(std::shared_ptr<grpc::Channel> channel, RetryOptions retry = {});

  // Errors of all uploads: kNotFound, kPermissionDenied (the local file), kResourceExhausted (the store is full or the
  // file above its limit), kUnavailable (the coordinator stayed away), kAborted (the file changed while it was sent).
  absl::StatusOr<v1::BlobRef> PutFile(const std::string& path);
  absl::StatusOr<v1::BlobRef> PutBytes(absl::string_view contents);

  // Uploads every regular file below `folder` and stores the listing; returns the artifact id. Empty folders are left
  // out. Errors besides the above: kInvalidArgument (a symbolic link or a special file; more than kMaxArtifactFiles).
  absl::StatusOr<std::string> PutFolder(const std::string& folder);

  // Writes the blob to `path` atomically; its folder must exist. A partial download left by an earlier process is gone
  // on with. A file that is there already with the right contents is kept. Errors: kNotFound (no such blob), kDataLoss
  // (what came is not what was asked for), kResourceExhausted (local disk full), kUnavailable.
  absl::Status GetFile(const v1::BlobRef& blob, const std::string& path);

  // For small files. Errors: as GetFile; kResourceExhausted above `max_bytes`.
  absl::StatusOr<std::string> GetBytes(const v1::BlobRef& blob, int64_t max_bytes);

  // Downloads the folder beside `target` and renames it there. If `target` exists with exactly these contents, nothing
  // is done; with others: kAlreadyExists.
  absl::Status GetFolder(const std::string& artifact_id, const std::string& target);

  // The listing, its hash checked. Errors: kNotFound, kDataLoss, kUnavailable.
  absl::StatusOr<v1::Artifact> GetListing(const std::string& artifact_id);

 private:
  // One answer per blob. The store keeps for a while what it says is there.
  absl::StatusOr<std::vector<bool>> AreStored(const std::vector<std::string>& sha256);
  absl::Status Upload(const v1::BlobRef& blob, const std::string& what,
                      absl::FunctionRef<absl::StatusOr<std::string>(int64_t offset_bytes)> read);
  // Appends the blob's bytes from `offset_bytes` on to `sink` until all are there. Retries while it makes progress.
  absl::Status Download(const v1::BlobRef& blob, int64_t offset_bytes,
                        absl::FunctionRef<absl::Status(absl::string_view data)> sink);

  const RetryOptions retry_;
  const std::unique_ptr<v1::ArtifactService::Stub> stub_;
};

}  // namespace retort
