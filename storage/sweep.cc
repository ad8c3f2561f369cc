#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <set>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/fault.h"
#include "common/id.h"
#include "common/status.h"
#include "storage/artifact_store.h"

namespace retort::storage {
namespace {

namespace fs = std::filesystem;

struct StoredFile {
  std::string name;
  std::string path;
};

// The files of <folder>/ab/, read before any is removed.
absl::StatusOr<std::vector<StoredFile>> ListFiles(const std::string& folder) {
  std::vector<StoredFile> files;
  std::error_code error;
  for (auto it = fs::recursive_directory_iterator(folder, error); !error && it != fs::recursive_directory_iterator();
       it.increment(error)) {
    std::string name = it->path().filename().string();
    if (IsSha256Hex(name)) files.push_back({std::move(name), it->path().string()});
  }
  if (error) return absl::InternalError(absl::StrCat("list ", folder, ": ", error.message()));
  return files;
}

}  // namespace

absl::StatusOr<int64_t> ArtifactStore::RemoveIfOlder(const std::string& path, absl::Time cutoff) {
  const std::string doomed = absl::StrCat(options_.root, "/incoming/", NewRequestId());
  struct stat info;
  {
    absl::MutexLock lock(&mu_);
    if (stat(path.c_str(), &info) != 0) {
      if (errno == ENOENT) return -1;
      return ErrnoStatus(absl::StrCat("stat ", path), errno);
    }
    if (absl::TimeFromTimespec(info.st_mtim) >= cutoff) return -1;
    MAYBE_FAULT("artifacts.before_remove");
    if (std::rename(path.c_str(), doomed.c_str()) != 0) return ErrnoStatus(absl::StrCat("remove ", path), errno);
  }
  // Outside the lock: it takes its time for a large file.
  MAYBE_FAULT("artifacts.before_unlink");
  if (unlink(doomed.c_str()) != 0) return ErrnoStatus(absl::StrCat("remove ", path), errno);
  return info.st_size;
}

absl::StatusOr<SweepResult> ArtifactStore::Sweep(const SweepOptions& options, absl::flat_hash_set<std::string>* retired,
                                                 absl::Time now) {
  {
    // What was touched since the oldest upload under way began, or shortly before, may belong to the same folder.
    absl::MutexLock lock(&mu_);
    if (!uploads_.empty()) now = std::min(now, *uploads_.begin());
  }
  ASSIGN_OR_RETURN(const std::vector<StoredFile> listings, ListFiles(options_.root + "/listings"));
  absl::flat_hash_set<std::string> kept_blobs = options.live_blobs;
  std::vector<const StoredFile*> others;
  for (const StoredFile& listing : listings) {
    if (!options.live_artifacts.contains(listing.name)) {
      others.push_back(&listing);
      continue;
    }
    const auto artifact = ReadListing(listing.name);
    if (absl::IsNotFound(artifact.status())) continue;
    if (!artifact.ok())
      return WithContext(artifact.status(), absl::StrCat("sweep: nothing is removed while ", listing.path,
                                                         " is damaged; restore or remove it"));
    for (const v1::ArtifactFile& file : artifact->files()) kept_blobs.insert(file.blob().sha256());
  }

  SweepResult result;
  absl::flat_hash_set<std::string> retired_blobs;
  std::set<std::string> changed_folders;
  for (const StoredFile* listing : others) {
    const bool was_named = retired->contains(listing->name);
    const auto artifact = ReadListing(listing->name);
    ASSIGN_OR_RETURN(const int64_t size,
                     RemoveIfOlder(listing->path, now - (was_named ? options.retired_grace : options.grace)));
    if (size >= 0) {
      ++result.artifacts;
      result.bytes += size;
      changed_folders.insert(fs::path(listing->path).parent_path().string());
      if (was_named) retired->erase(listing->name);
    }
    if (!artifact.ok()) continue;
    auto& blobs = size < 0 ? kept_blobs : retired_blobs;
    if (size < 0 || was_named) {
      for (const v1::ArtifactFile& file : artifact->files()) blobs.insert(file.blob().sha256());
    }
  }
  absl::erase_if(*retired, [&](const std::string& id) {
    return options.live_artifacts.contains(id) || access(ListingPath(id).c_str(), F_OK) != 0;
  });
  for (const std::string& folder : changed_folders) RETURN_IF_ERROR(FsyncPath(folder));

  ASSIGN_OR_RETURN(const std::vector<StoredFile> blobs, ListFiles(options_.root + "/blobs"));
  for (const StoredFile& blob : blobs) {
    if (kept_blobs.contains(blob.name)) continue;
    const absl::Duration grace = retired_blobs.contains(blob.name) ? options.retired_grace : options.grace;
    ASSIGN_OR_RETURN(const int64_t size, RemoveIfOlder(blob.path, now - grace));
    if (size < 0) continue;
    ++result.blobs;
    result.bytes += size;
  }
  return result;
}

}  // namespace retort::storage
