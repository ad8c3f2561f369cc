#include "common/rpc/artifact_client.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/fault.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/id.h"
#include "common/rpc/artifact_listing.h"

namespace retort {
namespace {

constexpr int64_t kChunkBytes = 1 << 20;
// One download RPC carries at most this much, so that its deadline can be short.
constexpr int64_t kRangeBytes = 64 << 20;
// Slowest transfer that is not taken for a dead one.
constexpr int64_t kMinBytesPerSecond = 1 << 20;

// While a folder is uploaded, the store is reminded this often that its first files are still wanted.
constexpr absl::Duration kAskAgainAfter = absl::Minutes(5);
constexpr int kMaxUploadRounds = 3;
constexpr int kMaxOpenAttempts = 16;

absl::Time TransferDeadline(absl::Time deadline, int64_t size_bytes) {
  return deadline + absl::Seconds(size_bytes / kMinBytesPerSecond + 1);
}

absl::StatusOr<int64_t> RegularFileSize(const std::string& path) {
  struct stat info;
  if (lstat(path.c_str(), &info) != 0) return ErrnoStatus(absl::StrCat("stat ", path), errno);
  if (S_ISLNK(info.st_mode) || !S_ISREG(info.st_mode))
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not a regular file; only those are uploaded"));
  return info.st_size;
}

absl::StatusOr<v1::BlobRef> RefOfFile(const std::string& path) {
  v1::BlobRef blob;
  ASSIGN_OR_RETURN(const int64_t size, RegularFileSize(path));
  blob.set_size_bytes(size);
  ASSIGN_OR_RETURN(*blob.mutable_sha256(), Sha256HexOfFile(path));
  return blob;
}

absl::StatusOr<bool> HoldsBlob(const std::string& path, const v1::BlobRef& blob) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error || static_cast<int64_t>(size) != blob.size_bytes()) return false;
  ASSIGN_OR_RETURN(const std::string sha256, Sha256HexOfFile(path));
  return sha256 == blob.sha256();
}

absl::Status WriteAll(int fd, absl::string_view data, const std::string& path) {
  while (!data.empty()) {
    const ssize_t written = write(fd, data.data(), data.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(absl::StrCat("write ", path), errno);
    data.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

struct PartialFile {
  std::string path;
  UniqueFd fd;  // locked
};

// Opens what an earlier process left under `path`, or makes it; while another has it locked, makes one of another name.
// Between open and lock another may have renamed the file to its place: a lock on that is none on `path`.
absl::StatusOr<PartialFile> OpenPartial(std::string path) {
  for (int attempt = 0; attempt < kMaxOpenAttempts; ++attempt) {
    UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
    if (!fd.valid()) return ErrnoStatus(absl::StrCat("create ", path), errno);
    MAYBE_FAULT("artifact_client.before_lock");
    if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) break;
    struct stat locked, named;
    if (fstat(fd.get(), &locked) != 0) return ErrnoStatus(absl::StrCat("stat ", path), errno);
    if (stat(path.c_str(), &named) == 0 && named.st_dev == locked.st_dev && named.st_ino == locked.st_ino)
      return PartialFile{std::move(path), std::move(fd)};
  }
  path = absl::StrCat(path, ".", NewRequestId());
  UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("create ", path), errno);
  return PartialFile{std::move(path), std::move(fd)};
}

// Hashes what a file descriptor holds from its start; leaves it at its end.
absl::StatusOr<int64_t> HashExisting(int fd, const std::string& path, Sha256* hash) {
  std::vector<char> buffer(kChunkBytes);
  int64_t total = 0;
  for (;;) {
    const ssize_t bytes_read = read(fd, buffer.data(), buffer.size());
    if (bytes_read < 0 && errno == EINTR) continue;
    if (bytes_read < 0) return ErrnoStatus(absl::StrCat("read ", path), errno);
    if (bytes_read == 0) return total;
    hash->Update(buffer.data(), static_cast<size_t>(bytes_read));
    total += bytes_read;
  }
}

}  // namespace

ArtifactClient::ArtifactClient(std::shared_ptr<grpc::Channel> channel, RetryOptions retry)
    : retry_(std::move(retry)), stub_(v1::ArtifactService::NewStub(channel)) {}

absl::StatusOr<std::vector<bool>> ArtifactClient::AreStored(const std::vector<std::string>& sha256) {
  v1::StatBlobsRequest request;
  for (const std::string& hash : sha256) request.add_sha256(hash);
  ASSIGN_OR_RETURN(const auto response,
                   UnaryWithRetry<v1::StatBlobsResponse>(
                       "StatBlobs", retry_, [&](grpc::ClientContext* context, v1::StatBlobsResponse* response) {
                         return stub_->StatBlobs(context, request, response);
                       }));
  if (response.present_size() != request.sha256_size())
    return absl::DataLossError("StatBlobs: one answer per blob expected");
  return std::vector<bool>(response.present().begin(), response.present().end());
}

absl::Status ArtifactClient::Upload(const v1::BlobRef& blob, const std::string& what,
                                    absl::FunctionRef<absl::StatusOr<std::string>(int64_t offset_bytes)> read) {
  return CallWithRetry(absl::StrCat("upload ", what), retry_, [&](absl::Time deadline) -> absl::Status {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(TransferDeadline(deadline, blob.size_bytes())));
    v1::PutBlobResponse response;
    const auto writer = stub_->PutBlob(&context, &response);
    v1::PutBlobRequest request;
    *request.mutable_blob() = blob;
    bool open = writer->Write(request);
    for (int64_t offset = 0; open && offset < blob.size_bytes();) {
      absl::StatusOr<std::string> data = read(offset);
      if (data.ok() && data->empty())
        data = absl::AbortedError("the file became shorter while it was sent; try again when nothing writes to it");
      if (!data.ok()) {
        context.TryCancel();
        writer->Finish();
        return data.status();
      }
      offset += static_cast<int64_t>(data->size());
      request.Clear();
      *request.mutable_data() = *std::move(data);
      open = writer->Write(request);
    }
    writer->WritesDone();
    // The store ends the call early, with OK, when somebody else has finished the same blob meanwhile.
    return FromGrpc(writer->Finish());
  });
}

absl::StatusOr<v1::BlobRef> ArtifactClient::PutFile(const std::string& path) {
  ASSIGN_OR_RETURN(const v1::BlobRef blob, RefOfFile(path));
  ASSIGN_OR_RETURN(const std::vector<bool> stored, AreStored({blob.sha256()}));
  if (stored[0]) return blob;
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("open ", path), errno);
  const auto read_at = [&](int64_t offset) -> absl::StatusOr<std::string> {
    std::string data(static_cast<size_t>(std::min(kChunkBytes, blob.size_bytes() - offset)), '\0');
    ssize_t bytes_read;
    do {
      bytes_read = pread(fd.get(), data.data(), data.size(), offset);
    } while (bytes_read < 0 && errno == EINTR);
    if (bytes_read < 0) return ErrnoStatus(absl::StrCat("read ", path), errno);
    data.resize(static_cast<size_t>(bytes_read));
    return data;
  };
  const absl::Status status = Upload(blob, path, read_at);
  if (absl::IsDataLoss(status)) {
    return absl::AbortedError(absl::StrCat("upload ", path, ": the file changed while it was sent (",
                                           std::string(status.message()), "); try again when nothing writes to it"));
  }
  if (!status.ok()) return status;
  return blob;
}

absl::StatusOr<v1::BlobRef> ArtifactClient::PutBytes(absl::string_view contents) {
  v1::BlobRef blob;
  blob.set_sha256(Sha256Hex(contents));
  blob.set_size_bytes(static_cast<int64_t>(contents.size()));
  ASSIGN_OR_RETURN(const std::vector<bool> stored, AreStored({blob.sha256()}));
  if (stored[0]) return blob;
  RETURN_IF_ERROR(
      Upload(blob, absl::StrCat("blob ", blob.sha256()), [&](int64_t offset) -> absl::StatusOr<std::string> {
        return std::string(contents.substr(static_cast<size_t>(offset), kChunkBytes));
      }));
  return blob;
}

absl::StatusOr<std::string> ArtifactClient::PutFolder(const std::string& folder) {
  namespace fs = std::filesystem;
  std::vector<std::string> paths;
  std::error_code error;
  for (auto it = fs::recursive_directory_iterator(folder, error); !error && it != fs::recursive_directory_iterator();
       it.increment(error)) {
    if (it->symlink_status().type() == fs::file_type::directory) continue;
    paths.push_back(it->path().lexically_relative(folder).generic_string());
    RETURN_IF_ERROR(RegularFileSize(it->path().string()).status());
    if (paths.size() > static_cast<size_t>(kMaxArtifactFiles))
      return absl::InvalidArgumentError(absl::StrCat("upload ", folder, ": more than ", kMaxArtifactFiles, " files"));
  }
  if (error) return absl::NotFoundError(absl::StrCat("list ", folder, ": ", error.message()));
  std::sort(paths.begin(), paths.end());

  v1::PutArtifactRequest request;
  std::vector<std::string> hashes;
  absl::Time asked_at = absl::Now();
  for (const std::string& path : paths) {
    v1::ArtifactFile& file = *request.mutable_artifact()->add_files();
    file.set_path(path);
    ASSIGN_OR_RETURN(*file.mutable_blob(), PutFile(absl::StrCat(folder, "/", path)));
    hashes.push_back(file.blob().sha256());
    if (absl::Now() - asked_at < kAskAgainAfter) continue;
    RETURN_IF_ERROR(AreStored(hashes).status());
    asked_at = absl::Now();
  }
  // What the folder does not name yet, the store may have removed while the rest was sent for hours.
  for (int round = 0; round < kMaxUploadRounds; ++round) {
    ASSIGN_OR_RETURN(const std::vector<bool> stored, AreStored(hashes));
    if (std::find(stored.begin(), stored.end(), false) == stored.end()) break;
    for (size_t i = 0; i < paths.size(); ++i) {
      if (!stored[i]) RETURN_IF_ERROR(PutFile(absl::StrCat(folder, "/", paths[i])).status());
    }
  }
  RETURN_IF_ERROR(ValidateListing(request.artifact().files()));
  ASSIGN_OR_RETURN(const auto response, UnaryWithRetry<v1::PutArtifactResponse>(
                                            absl::StrCat("PutArtifact ", folder), retry_,
                                            [&](grpc::ClientContext* context, v1::PutArtifactResponse* response) {
                                              return stub_->PutArtifact(context, request, response);
                                            }));
  if (response.artifact_id() != ArtifactIdOf(request.artifact().files()))
    return absl::DataLossError(absl::StrCat("upload ", folder, ": the store gave another artifact id than expected"));
  return response.artifact_id();
}

absl::Status ArtifactClient::Download(const v1::BlobRef& blob, int64_t offset_bytes,
                                      absl::FunctionRef<absl::Status(absl::string_view data)> sink) {
  int64_t offset = offset_bytes;
  absl::Status sink_status;
  while (offset < blob.size_bytes()) {
    const int64_t before = offset;
    const int64_t range_end = std::min(offset + kRangeBytes, blob.size_bytes());
    absl::Status status =
        CallWithRetry(absl::StrCat("download blob ", blob.sha256()), retry_, [&](absl::Time deadline) -> absl::Status {
          v1::GetBlobRequest request;
          request.set_sha256(blob.sha256());
          request.set_offset_bytes(offset);
          request.set_limit_bytes(range_end - offset);
          grpc::ClientContext context;
          context.set_deadline(absl::ToChronoTime(TransferDeadline(deadline, range_end - offset)));
          const auto reader = stub_->GetBlob(&context, request);
          v1::GetBlobResponse response;
          while (reader->Read(&response)) {
            if (static_cast<int64_t>(response.data().size()) > range_end - offset) {
              sink_status =
                  absl::DataLossError(absl::StrCat("blob ", blob.sha256(), ": more bytes came than asked for"));
            } else {
              sink_status = sink(response.data());
            }
            if (!sink_status.ok()) {
              context.TryCancel();
              reader->Finish();
              return absl::OkStatus();
            }
            offset += static_cast<int64_t>(response.data().size());
          }
          return FromGrpc(reader->Finish());
        });
    RETURN_IF_ERROR(sink_status);
    // What came before the break counts: a transfer that moves gets its full time again.
    if (!status.ok() && !(IsRetryable(status) && offset > before)) return status;
    if (offset == before) {
      return absl::DataLossError(
          absl::StrCat("blob ", blob.sha256(), ": ends after ", offset, " of ", blob.size_bytes(), " bytes"));
    }
  }
  return absl::OkStatus();
}

absl::Status ArtifactClient::GetFile(const v1::BlobRef& blob, const std::string& path) {
  RETURN_IF_ERROR(ValidateBlobRef(blob));
  ASSIGN_OR_RETURN(const bool complete, HoldsBlob(path, blob));
  if (complete) return absl::OkStatus();

  ASSIGN_OR_RETURN(auto partial_file, OpenPartial(absl::StrCat(path, ".part-", blob.sha256().substr(0, 16))));
  const std::string& partial = partial_file.path;
  const UniqueFd& fd = partial_file.fd;
  ASSIGN_OR_RETURN(const bool complete_meanwhile, HoldsBlob(path, blob));
  if (complete_meanwhile) {
    unlink(partial.c_str());
    return absl::OkStatus();
  }

  absl::Status status;
  for (bool resumed = true; resumed;) {
    Sha256 hash;
    lseek(fd.get(), 0, SEEK_SET);
    ASSIGN_OR_RETURN(int64_t offset, HashExisting(fd.get(), partial, &hash));
    resumed = offset > 0 && offset <= blob.size_bytes();
    status = offset > blob.size_bytes() ? absl::OkStatus() : Download(blob, offset, [&](absl::string_view data) {
      hash.Update(data);
      return WriteAll(fd.get(), data, partial);
    });
    if (IsRetryable(status)) return status;  // the partial file is kept for the next try
    if (!status.ok() || (offset <= blob.size_bytes() && ToHex(hash.Finish()) == blob.sha256())) break;
    status =
        absl::DataLossError(absl::StrCat("download to ", path, ": the contents do not have the hash ", blob.sha256()));
    // What an earlier process left may be at fault: once more from the start.
    if (ftruncate(fd.get(), 0) != 0) return ErrnoStatus(absl::StrCat("truncate ", partial), errno);
    resumed = resumed || offset > blob.size_bytes();
  }
  if (status.ok() && fsync(fd.get()) != 0) status = ErrnoStatus(absl::StrCat("fsync ", partial), errno);
  if (status.ok() && std::rename(partial.c_str(), path.c_str()) != 0)
    status = ErrnoStatus(absl::StrCat("rename to ", path), errno);
  if (!status.ok()) {
    unlink(partial.c_str());
    return status;
  }
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return FsyncPath(parent.empty() ? "." : parent);
}

absl::StatusOr<std::string> ArtifactClient::GetBytes(const v1::BlobRef& blob, int64_t max_bytes) {
  RETURN_IF_ERROR(ValidateBlobRef(blob));
  if (blob.size_bytes() > max_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat("blob ", blob.sha256(), ": ", blob.size_bytes(), " bytes are over the limit of ", max_bytes));
  }
  std::string contents;
  RETURN_IF_ERROR(Download(blob, 0, [&](absl::string_view data) {
    contents.append(data.data(), data.size());
    return absl::OkStatus();
  }));
  if (Sha256Hex(contents) != blob.sha256())
    return absl::DataLossError(absl::StrCat("blob ", blob.sha256(), ": what came has another hash"));
  return contents;
}

absl::StatusOr<v1::Artifact> ArtifactClient::GetListing(const std::string& artifact_id) {
  v1::GetArtifactRequest request;
  request.set_artifact_id(artifact_id);
  ASSIGN_OR_RETURN(auto response, UnaryWithRetry<v1::GetArtifactResponse>(
                                      absl::StrCat("GetArtifact ", artifact_id), retry_,
                                      [&](grpc::ClientContext* context, v1::GetArtifactResponse* response) {
                                        return stub_->GetArtifact(context, request, response);
                                      }));
  RETURN_IF_ERROR(WithContext(ValidateListing(response.artifact().files()), absl::StrCat("artifact ", artifact_id)));
  if (ArtifactIdOf(response.artifact().files()) != artifact_id)
    return absl::DataLossError(absl::StrCat("artifact ", artifact_id, ": its listing has another hash"));
  return std::move(*response.mutable_artifact());
}

absl::Status ArtifactClient::GetFolder(const std::string& artifact_id, const std::string& target) {
  namespace fs = std::filesystem;
  ASSIGN_OR_RETURN(const v1::Artifact artifact, GetListing(artifact_id));
  std::error_code error;
  const auto matches = [&]() -> absl::Status {
    size_t found = 0;
    std::error_code list_error;
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator(target, list_error))
      found += entry.is_directory(list_error) ? 0 : 1;
    bool same = !list_error && found == static_cast<size_t>(artifact.files_size());
    for (int i = 0; same && i < artifact.files_size(); ++i) {
      ASSIGN_OR_RETURN(const std::string path, JoinBelow(target, artifact.files(i).path()));
      ASSIGN_OR_RETURN(same, HoldsBlob(path, artifact.files(i).blob()));
    }
    if (same) return absl::OkStatus();
    return absl::AlreadyExistsError(absl::StrCat("download to ", target, ": exists already with other contents"));
  };
  if (fs::exists(target, error)) return matches();

  const std::string draft = absl::StrCat(target, ".tmp-", NewRequestId());
  RETURN_IF_ERROR(MakeFolders(draft));
  absl::Status status;
  for (const v1::ArtifactFile& file : artifact.files()) {
    const absl::StatusOr<std::string> path = JoinBelow(draft, file.path());
    status = path.status();
    if (status.ok()) status = MakeFolders(fs::path(*path).parent_path().string());
    if (status.ok()) status = WithContext(GetFile(file.blob(), *path), file.path());
    if (!status.ok()) break;
  }
  if (status.ok()) status = PublishFolder(draft, target);
  if (!status.ok()) fs::remove_all(draft, error);
  if (absl::IsAlreadyExists(status)) return matches();
  return status;
}

}  // namespace retort
