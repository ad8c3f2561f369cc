// Content-addressed files, and folders over them, on the coordinator's disk.
//
//   <root>/blobs/ab/abcdef...     one file per blob, named by the SHA-256 of its contents
//   <root>/listings/ab/abcdef...  one serialised v1.Artifact per folder, named by its artifact id
//   <root>/incoming/              uploads under way, and what is being removed; emptied at Open
//   <root>/damaged/               what VerifyArtifact set aside
//
// A file appears under its name only when it is whole, hashed and fsynced; it never changes. What nobody names any more
// is removed by Sweep. Its modification time says when somebody last stored it or asked whether it is stored: such a
// caller is about to name it, so it stays for a while.
//
// Thread-safe; one process at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/file.h"
#include "common/hash.h"
#include "retort/v1/artifact_service.pb.h"

namespace retort::storage {

struct ArtifactStoreOptions {
  std::string root;                           // made when absent
  int64_t max_blob_bytes = int64_t{1} << 40;  // larger uploads are refused before a byte is written
  int64_t min_free_bytes = 64 << 20;          // an upload that would leave less than this on the disk is refused
};

// What stays when the store is swept.
struct SweepOptions {
  absl::flat_hash_set<std::string> live_artifacts;  // ids; their blobs live with them
  absl::flat_hash_set<std::string> live_blobs;      // by SHA-256
  // Anything else goes when it was last touched this long ago. Uploads under way count from their start.
  absl::Duration grace = absl::Hours(1);
  // The same for artifacts that were named before and no longer are: nobody is about to name them for the first time.
  absl::Duration retired_grace = absl::Minutes(2);
};

struct SweepResult {
  int64_t artifacts = 0;
  int64_t blobs = 0;
  int64_t bytes = 0;
};

class ArtifactStore;

// One upload. Destroyed before Commit succeeded, it leaves nothing behind. Its store must outlive it. Not thread-safe.
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
  BlobWriter(ArtifactStore* store, v1::BlobRef blob, std::string temporary, std::string target, UniqueFd fd);

  ArtifactStore* const store_;
  const absl::Time started_at_ = absl::Now();
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

  // Touches it: a blob that is there now can be named within the grace of a sweep.
  bool HasBlob(absl::string_view sha256) const;

  // Calls `emit` with `limit_bytes` (0: all) of the blob from `offset_bytes` on, at most 1 MiB at a time. A read of the
  // whole blob checks its hash. Errors: kNotFound, kOutOfRange (offset beyond the end), kDataLoss (damaged on disk),
  // and those of `emit`.
  absl::Status ReadBlob(absl::string_view sha256, int64_t offset_bytes, int64_t limit_bytes,
                        absl::FunctionRef<absl::Status(absl::string_view data)> emit) const;

  // Stores a folder; returns its id. `artifact.artifact_id` must be empty or right. Errors: kInvalidArgument (a path
  // leaves the folder, ...), kNotFound (a blob is not stored, or has another size), kResourceExhausted.
  absl::StatusOr<std::string> PutArtifact(const v1::Artifact& artifact);
  // Touches it, as HasBlob does. Errors: kNotFound, kInvalidArgument (not an id), kDataLoss (damaged on disk).
  absl::StatusOr<v1::Artifact> GetArtifact(absl::string_view artifact_id) const;

  // Removes what is neither live nor young at `now`: folders first, durably, then blobs that no folder left holds, so
  // that a crash at any point leaves every folder with its blobs. Takes those of `retired` that are gone or live out of
  // it. Work goes on meanwhile. Errors: kDataLoss (a live folder's listing is damaged, so its blobs are not known;
  // nothing was removed), kInternal.
  absl::StatusOr<SweepResult> Sweep(const SweepOptions& options, absl::flat_hash_set<std::string>* retired,
                                    absl::Time now = absl::Now());

  // Reads all of a folder. What is damaged is moved to <root>/damaged/, so that the same contents can be uploaded
  // again. Errors: kDataLoss and kNotFound (some of it is damaged, or was found so before), kInvalidArgument (not an
  // id).
  absl::Status VerifyArtifact(absl::string_view artifact_id);

 private:
  friend class BlobWriter;
  ArtifactStore(ArtifactStoreOptions options, UniqueFd lock);
  absl::StatusOr<v1::Artifact> ReadListing(absl::string_view artifact_id) const;
  // Makes the file young; false when there is none.
  bool Touch(const std::string& path) const ABSL_LOCKS_EXCLUDED(mu_);
  // rename, told apart from a sweep that looks at `to` just now.
  absl::Status Publish(const std::string& from, const std::string& to) ABSL_LOCKS_EXCLUDED(mu_);
  // Removes the file unless it was touched after `cutoff`. Returns its size; -1: it stays, or is gone already.
  absl::StatusOr<int64_t> RemoveIfOlder(const std::string& path, absl::Time cutoff) ABSL_LOCKS_EXCLUDED(mu_);
  std::string BlobPath(absl::string_view sha256) const;
  std::string ListingPath(absl::string_view artifact_id) const;

  const ArtifactStoreOptions options_;
  const UniqueFd lock_;     // flock on <root>/lock
  mutable absl::Mutex mu_;  // held where a file's age is looked at or changed, never for long
  std::multiset<absl::Time> uploads_ ABSL_GUARDED_BY(mu_);  // starts of those under way
};

}  // namespace retort::storage
