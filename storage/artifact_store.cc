#include "storage/artifact_store.h"

#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/id.h"
#include "common/rpc/artifact_listing.h"
#include "common/status.h"

namespace retort::storage {
namespace {

constexpr int64_t kChunkBytes = 1 << 20;
constexpr int64_t kMaxListingBytes = 256 << 20;

}  // namespace

BlobWriter::BlobWriter(ArtifactStore* store, v1::BlobRef blob, std::string temporary, std::string target, UniqueFd fd)
    : store_(store),
      blob_(std::move(blob)),
      temporary_(std::move(temporary)),
      target_(std::move(target)),
      fd_(std::move(fd)) {
  absl::MutexLock lock(&store_->mu_);
  store_->uploads_.insert(started_at_);
}

BlobWriter::~BlobWriter() {
  if (!committed_) unlink(temporary_.c_str());
  absl::MutexLock lock(&store_->mu_);
  store_->uploads_.erase(store_->uploads_.find(started_at_));
}

absl::Status BlobWriter::Append(absl::string_view data) {
  size_bytes_ += static_cast<int64_t>(data.size());
  if (size_bytes_ > blob_.size_bytes()) {
    return absl::DataLossError(
        absl::StrCat("blob ", blob_.sha256(), ": more came than the ", blob_.size_bytes(), " bytes announced"));
  }
  hash_.Update(data);
  while (!data.empty()) {
    const ssize_t written = write(fd_.get(), data.data(), data.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      // EFBIG: the process's limit on file sizes; for the sender the same as a full disk.
      return ErrnoStatus(absl::StrCat("store blob ", blob_.sha256()), errno == EFBIG ? ENOSPC : errno);
    }
    data.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

absl::Status BlobWriter::Commit() {
  if (size_bytes_ != blob_.size_bytes()) {
    return absl::DataLossError(absl::StrCat("blob ", blob_.sha256(), ": ", size_bytes_, " bytes came, ",
                                            blob_.size_bytes(), " were announced"));
  }
  const std::string actual = ToHex(hash_.Finish());
  if (actual != blob_.sha256())
    return absl::DataLossError(absl::StrCat("blob ", blob_.sha256(), ": what came has the hash ", actual));
  if (fsync(fd_.get()) != 0 || futimens(fd_.get(), nullptr) != 0)
    return ErrnoStatus(absl::StrCat("fsync blob ", blob_.sha256()), errno);
  const std::string folder = std::filesystem::path(target_).parent_path().string();
  RETURN_IF_ERROR(MakeFolders(folder, 0700));
  RETURN_IF_ERROR(store_->Publish(temporary_, target_));
  committed_ = true;
  RETURN_IF_ERROR(FsyncPath(folder));
  return FsyncPath(std::filesystem::path(folder).parent_path().string());
}

ArtifactStore::ArtifactStore(ArtifactStoreOptions options, UniqueFd lock)
    : options_(std::move(options)), lock_(std::move(lock)) {}

absl::StatusOr<std::unique_ptr<ArtifactStore>> ArtifactStore::Open(const ArtifactStoreOptions& options) {
  for (const char* folder : {"/blobs", "/listings", "/incoming"})
    RETURN_IF_ERROR(WithContext(MakeFolders(options.root + folder, 0700), "open artifact store"));
  const std::string lock_path = options.root + "/lock";
  UniqueFd lock(open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock.valid()) return ErrnoStatus(absl::StrCat("open ", lock_path), errno);
  if (flock(lock.get(), LOCK_EX | LOCK_NB) != 0)
    return absl::UnavailableError(absl::StrCat("open artifact store ", options.root, ": another process has it open"));

  std::error_code error;
  int64_t removed = 0;
  std::vector<std::filesystem::path> leftovers;
  for (const auto& entry : std::filesystem::directory_iterator(options.root + "/incoming", error))
    leftovers.push_back(entry.path());
  for (const auto& path : leftovers) removed += std::filesystem::remove(path, error) ? 1 : 0;
  if (error) return absl::InternalError(absl::StrCat("clean ", options.root, "/incoming: ", error.message()));
  spdlog::info("artifact_store_opened root={} leftovers_removed={}", options.root, removed);
  return std::unique_ptr<ArtifactStore>(new ArtifactStore(options, std::move(lock)));
}

std::string ArtifactStore::BlobPath(absl::string_view sha256) const {
  return absl::StrCat(options_.root, "/blobs/", sha256.substr(0, 2), "/", sha256);
}

std::string ArtifactStore::ListingPath(absl::string_view artifact_id) const {
  return absl::StrCat(options_.root, "/listings/", artifact_id.substr(0, 2), "/", artifact_id);
}

absl::StatusOr<std::unique_ptr<BlobWriter>> ArtifactStore::StartBlob(const v1::BlobRef& blob) {
  RETURN_IF_ERROR(ValidateBlobRef(blob));
  if (HasBlob(blob.sha256())) return std::unique_ptr<BlobWriter>();
  if (blob.size_bytes() > options_.max_blob_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("blob of ", blob.size_bytes(), " bytes: the store takes at most ", options_.max_blob_bytes));
  }
  struct statvfs disk;
  if (statvfs(options_.root.c_str(), &disk) != 0) return ErrnoStatus(absl::StrCat("stat ", options_.root), errno);
  const int64_t free_bytes = static_cast<int64_t>(disk.f_bavail) * static_cast<int64_t>(disk.f_frsize);
  if (free_bytes - blob.size_bytes() < options_.min_free_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("blob of ", blob.size_bytes(), " bytes: the disk of ",
                                                     options_.root, " has ", free_bytes, " free and ",
                                                     options_.min_free_bytes, " are kept; free some space"));
  }
  const std::string temporary = absl::StrCat(options_.root, "/incoming/", NewRequestId());
  UniqueFd fd(open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("create ", temporary), errno);
  return std::unique_ptr<BlobWriter>(new BlobWriter(this, blob, temporary, BlobPath(blob.sha256()), std::move(fd)));
}

absl::StatusOr<v1::BlobRef> ArtifactStore::PutBytes(absl::string_view contents) {
  v1::BlobRef blob;
  blob.set_sha256(Sha256Hex(contents));
  blob.set_size_bytes(static_cast<int64_t>(contents.size()));
  ASSIGN_OR_RETURN(const std::unique_ptr<BlobWriter> writer, StartBlob(blob));
  if (writer == nullptr) return blob;
  RETURN_IF_ERROR(writer->Append(contents));
  RETURN_IF_ERROR(writer->Commit());
  return blob;
}

bool ArtifactStore::HasBlob(absl::string_view sha256) const { return IsSha256Hex(sha256) && Touch(BlobPath(sha256)); }

bool ArtifactStore::Touch(const std::string& path) const {
  absl::MutexLock lock(&mu_);
  return utimensat(AT_FDCWD, path.c_str(), nullptr, 0) == 0 || (errno != ENOENT && access(path.c_str(), F_OK) == 0);
}

absl::Status ArtifactStore::Publish(const std::string& from, const std::string& to) {
  absl::MutexLock lock(&mu_);
  if (std::rename(from.c_str(), to.c_str()) != 0) return ErrnoStatus(absl::StrCat("rename to ", to), errno);
  return absl::OkStatus();
}

absl::Status ArtifactStore::ReadBlob(absl::string_view sha256, int64_t offset_bytes, int64_t limit_bytes,
                                     absl::FunctionRef<absl::Status(absl::string_view)> emit) const {
  if (!IsSha256Hex(sha256)) return absl::InvalidArgumentError("sha256: must be 64 lower-case hexadecimal digits");
  if (limit_bytes < 0) return absl::InvalidArgumentError("limit_bytes: must not be negative");
  const std::string path = BlobPath(sha256);
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    if (errno == ENOENT) return absl::NotFoundError(absl::StrCat("blob ", std::string(sha256), ": is not stored"));
    return ErrnoStatus(absl::StrCat("open ", path), errno);
  }
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(absl::StrCat("stat ", path), errno);
  if (offset_bytes < 0 || offset_bytes > info.st_size) {
    return absl::OutOfRangeError(
        absl::StrCat("blob ", std::string(sha256), ": offset ", offset_bytes, " of ", info.st_size, " bytes"));
  }
  const int64_t end =
      limit_bytes == 0 ? info.st_size : offset_bytes + std::min<int64_t>(limit_bytes, info.st_size - offset_bytes);
  const bool whole = offset_bytes == 0 && end == info.st_size;
  Sha256 hash;
  std::string buffer;
  for (int64_t offset = offset_bytes; offset < end;) {
    buffer.resize(static_cast<size_t>(std::min(kChunkBytes, end - offset)));
    const ssize_t bytes_read = pread(fd.get(), buffer.data(), buffer.size(), offset);
    if (bytes_read < 0 && errno == EINTR) continue;
    if (bytes_read < 0) {
      if (errno == EIO) return absl::DataLossError(absl::StrCat("read ", path, ": the disk cannot read it"));
      return ErrnoStatus(absl::StrCat("read ", path), errno);
    }
    if (bytes_read == 0) return absl::DataLossError(absl::StrCat("read ", path, ": became shorter"));
    const absl::string_view data(buffer.data(), static_cast<size_t>(bytes_read));
    if (whole) hash.Update(data);
    offset += bytes_read;
    // The last piece of a whole blob is held back until the hash is known to be right.
    if (whole && offset == end && ToHex(hash.Finish()) != sha256) {
      return absl::DataLossError(absl::StrCat("blob ", std::string(sha256), ": is damaged on disk (", path,
                                              "); remove that file and upload it again"));
    }
    RETURN_IF_ERROR(emit(data));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ArtifactStore::PutArtifact(const v1::Artifact& artifact) {
  RETURN_IF_ERROR(ValidateListing(artifact.files()));
  v1::Artifact stored = artifact;
  stored.set_artifact_id(ArtifactIdOf(artifact.files()));
  if (!artifact.artifact_id().empty() && artifact.artifact_id() != stored.artifact_id())
    return absl::InvalidArgumentError(absl::StrCat("artifact_id: the listing's is ", stored.artifact_id()));
  for (const v1::ArtifactFile& file : artifact.files()) {
    const std::string blob_path = BlobPath(file.blob().sha256());
    struct stat info;
    if (!Touch(blob_path) || stat(blob_path.c_str(), &info) != 0)
      return absl::NotFoundError(absl::StrCat("file ", file.path(), ": its blob is not stored; upload it first"));
    if (info.st_size != file.blob().size_bytes()) {
      return absl::NotFoundError(absl::StrCat("file ", file.path(), ": its blob has ", info.st_size, " bytes, not ",
                                              file.blob().size_bytes()));
    }
  }
  const std::string path = ListingPath(stored.artifact_id());
  if (Touch(path)) return stored.artifact_id();
  // Beside the blobs' temporaries, so that what a crash leaves is removed at Open.
  const std::string temporary = absl::StrCat(options_.root, "/incoming/", NewRequestId());
  const std::string folder = std::filesystem::path(path).parent_path().string();
  RETURN_IF_ERROR(MakeFolders(folder, 0700));
  RETURN_IF_ERROR(WriteFileAtomically(temporary, stored.SerializeAsString(), 0600));
  RETURN_IF_ERROR(Publish(temporary, path));
  RETURN_IF_ERROR(FsyncPath(folder));
  RETURN_IF_ERROR(FsyncPath(std::filesystem::path(folder).parent_path().string()));
  return stored.artifact_id();
}

absl::StatusOr<v1::Artifact> ArtifactStore::GetArtifact(absl::string_view artifact_id) const {
  if (!IsSha256Hex(artifact_id))
    return absl::InvalidArgumentError("artifact_id: must be 64 lower-case hexadecimal digits");
  Touch(ListingPath(artifact_id));
  return ReadListing(artifact_id);
}

absl::StatusOr<v1::Artifact> ArtifactStore::ReadListing(absl::string_view artifact_id) const {
  const auto bytes = ReadFile(ListingPath(artifact_id), kMaxListingBytes);
  if (absl::IsNotFound(bytes.status()))
    return absl::NotFoundError(absl::StrCat("artifact ", std::string(artifact_id), ": is not stored"));
  if (!bytes.ok()) return bytes.status();
  v1::Artifact artifact;
  if (!artifact.ParseFromString(*bytes) || !ValidateListing(artifact.files()).ok() ||
      ArtifactIdOf(artifact.files()) != artifact_id) {
    return absl::DataLossError(absl::StrCat("artifact ", std::string(artifact_id), ": its listing is damaged on disk"));
  }
  return artifact;
}

absl::Status ArtifactStore::VerifyArtifact(absl::string_view artifact_id) {
  const auto set_aside = [&](const std::string& path) {
    const std::string target = absl::StrCat(options_.root, "/damaged/", NewRequestId());
    const absl::Status made = MakeFolders(options_.root + "/damaged", 0700);
    if (!made.ok() || std::rename(path.c_str(), target.c_str()) != 0) {
      spdlog::error("damaged_file_stays path={} error=\"{}\"", path,
                    made.ok() ? ErrnoStatus("rename", errno).ToString() : made.ToString());
      return;
    }
    spdlog::error("damaged_file_set_aside path={} as={}", path, target);
  };
  const absl::StatusOr<v1::Artifact> artifact = GetArtifact(artifact_id);
  if (absl::IsDataLoss(artifact.status())) set_aside(ListingPath(artifact_id));
  RETURN_IF_ERROR(artifact.status());
  absl::Status status;
  for (const v1::ArtifactFile& file : artifact->files()) {
    const std::string& sha256 = file.blob().sha256();
    int64_t size_bytes = 0;
    absl::Status read = ReadBlob(sha256, 0, 0, [&](absl::string_view data) {
      size_bytes += static_cast<int64_t>(data.size());
      return absl::OkStatus();
    });
    if (read.ok() && size_bytes != file.blob().size_bytes()) {
      read = absl::DataLossError(
          absl::StrCat("blob ", sha256, ": has ", size_bytes, " bytes on disk, not ", file.blob().size_bytes()));
    }
    if (absl::IsDataLoss(read)) set_aside(BlobPath(sha256));
    if (!read.ok()) status = WithContext(read, file.path());
  }
  return status;
}

}  // namespace retort::storage
