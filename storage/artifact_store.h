// Content-addressed files, and folders over them, on the coordinator's disk.
//
//   <root>/blobs/ab/abcdef...     one file per blob, named by the SHA-256 of its contents
//   <root>/listings/ab/abcdef...  one serialised v1.Artifact per folder, named by its artifact id
//   <root>/incoming/              uploads under way; emptied at Open
//
// A file appears under its name only when it is whole, hashed and fsynced; it never changes. Thread-safe; one process
// at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/file.h"
#include "common/hash.h"
#include "retort/v1/artifact_service.pb.h"

namespace retort::storage {

struct ArtifactStoreOptions {
  std::string root;                           // made when absent
  int64_t max_blob_bytes = int64_t{1} << 40;  // larger uploads are refused before a byte is written
  int64_t min_free_bytes = 64 << 20;          // an upload that would leave less than this on the disk is refused
};

// One upload. Destroyed before Commit succeeded, it leaves nothing behind. Not thread-safe.
class BlobWriter {
 public:
  ~BlobWriter();
  BlobWriter(const BlobWriter&) = delete;
  BlobWriter& operator=(const BlobWriter&) = delete;

  // Errors: kDataLoss (more bytes than announced), kResourceExhausted (disk full), kInternal.
  absl::Status Append(absl::string_view data);
  // Publishes the blob, durably. Errors: kDataLoss (size or hash are not as announced), kResourceExhausted, kInternal.
  absl::Status Commit();

 private:
  friend class ArtifactStore;
  BlobWriter(v1::BlobRef blob, std::string temporary, std::string target, UniqueFd fd);

  const v1::BlobRef blob_;
  const std::string temporary_;
  const std::string target_;
  UniqueFd fd_;
  Sha256 hash_;
  int64_t size_bytes_ = 0;
  bool committed_ = false;
};

class ArtifactStore {
 public:
  // Errors: kUnavailable (another process has it open), kPermissionDenied, kResourceExhausted, kInternal.
  static absl::StatusOr<std::unique_ptr<ArtifactStore>> Open(const ArtifactStoreOptions& options);

  // Begins an upload. Null: the blob is stored already. Errors: kInvalidArgument (malformed reference),
  // kResourceExhausted (above max_blob_bytes, or the disk would be full).
  absl::StatusOr<std::unique_ptr<BlobWriter>> StartBlob(const v1::BlobRef& blob);

  // Stores `contents` at once.
  absl::StatusOr<v1::BlobRef> PutBytes(absl::string_view contents);

  bool HasBlob(absl::string_view sha256) const;

  // Calls `emit` with `limit_bytes` (0: all) of the blob from `offset_bytes` on, at most 1 MiB at a time. A read of the
  // whole blob checks its hash. Errors: kNotFound, kOutOfRange (offset beyond the end), kDataLoss (damaged on disk),
  // and those of `emit`.
  absl::Status ReadBlob(absl::string_view sha256, int64_t offset_bytes, int64_t limit_bytes,
                        absl::FunctionRef<absl::Status(absl::string_view data)> emit) const;

  // Stores a folder; returns its id. `artifact.artifact_id` must be empty or right. Errors: kInvalidArgument (a path
  // leaves the folder, ...), kNotFound (a blob is not stored, or has another size), kResourceExhausted.
  absl::StatusOr<std::string> PutArtifact(const v1::Artifact& artifact);
  // Errors: kNotFound, kInvalidArgument (not an id), kDataLoss (damaged on disk).
  absl::StatusOr<v1::Artifact> GetArtifact(absl::string_view artifact_id) const;

 private:
  ArtifactStore(ArtifactStoreOptions options, UniqueFd lock);
  std::string BlobPath(absl::string_view sha256) const;
  std::string ListingPath(absl::string_view artifact_id) const;

  const ArtifactStoreOptions options_;
  const UniqueFd lock_;  // flock on <root>/lock
};

}  // namespace retort::storage
