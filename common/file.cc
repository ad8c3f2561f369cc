#include "common/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/id.h"
#include "common/status.h"

namespace retort {
namespace {

absl::Status WriteAll(int fd, absl::string_view contents, const std::string& path) {
  while (!contents.empty()) {
    const ssize_t written = write(fd, contents.data(), contents.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(absl::StrCat("write ", path), errno);
    contents.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

std::string ParentOf(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

}  // namespace

void UniqueFd::Reset(int fd) {
  if (fd_ >= 0) close(fd_);
  fd_ = fd;
}

absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("open ", path), errno);
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(absl::StrCat("stat ", path), errno);
  if (S_ISDIR(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat("read ", path, ": is a folder"));
  std::string contents;
  contents.reserve(static_cast<size_t>(std::min<int64_t>(info.st_size, max_bytes)));
  char buffer[1 << 16];
  for (;;) {
    const ssize_t bytes_read = read(fd.get(), buffer, sizeof(buffer));
    if (bytes_read < 0 && errno == EINTR) continue;
    if (bytes_read < 0) return ErrnoStatus(absl::StrCat("read ", path), errno);
    if (bytes_read == 0) return contents;
    if (static_cast<int64_t>(contents.size()) + bytes_read > max_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat("read ", path, ": larger than the limit of ", max_bytes, " bytes"));
    }
    contents.append(buffer, static_cast<size_t>(bytes_read));
  }
}

absl::Status FsyncPath(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("open ", path), errno);
  if (fsync(fd.get()) != 0) return ErrnoStatus(absl::StrCat("fsync ", path), errno);
  return absl::OkStatus();
}

absl::StatusOr<AtomicFile> AtomicFile::Create(const std::string& path, int mode) {
  struct stat info;
  if (stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode)) {
    UniqueFd device(open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!device.valid()) return ErrnoStatus(absl::StrCat("open ", path), errno);
    return AtomicFile(path, /*temporary=*/"", std::move(device));
  }
  // Random, not the process's id: what a crash leaves must never stand in the way of a later process, which may have
  // the same id (always 1 in a container).
  std::string temporary = absl::StrCat(path, ".tmp.", RandomHex(16));
  UniqueFd fd(open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("create ", temporary), errno);
  return AtomicFile(path, std::move(temporary), std::move(fd));
}

AtomicFile::~AtomicFile() {
  if (fd_.valid() && !temporary_.empty()) unlink(temporary_.c_str());
}

absl::Status AtomicFile::Append(absl::string_view contents) {
  return WriteAll(fd_.get(), contents, temporary_.empty() ? path_ : temporary_);
}

absl::Status AtomicFile::Commit() {
  if (temporary_.empty()) {
    fd_.Reset();
    return absl::OkStatus();
  }
  if (fsync(fd_.get()) != 0) return ErrnoStatus(absl::StrCat("fsync ", temporary_), errno);
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) return ErrnoStatus(absl::StrCat("rename to ", path_), errno);
  fd_.Reset();
  return FsyncPath(ParentOf(path_));
}

absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents, int mode) {
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path, mode));
  RETURN_IF_ERROR(file.Append(contents));
  return file.Commit();
}

absl::Status PublishFolder(const std::string& folder, const std::string& target) {
  std::error_code error;
  if (std::filesystem::exists(target, error))
    return absl::AlreadyExistsError(absl::StrCat("publish ", target, ": exists already"));
  for (auto it = std::filesystem::recursive_directory_iterator(folder, error);
       !error && it != std::filesystem::recursive_directory_iterator(); it.increment(error)) {
    if (it->is_symlink()) continue;
    RETURN_IF_ERROR(FsyncPath(it->path().string()));
  }
  if (error) return absl::InternalError(absl::StrCat("list ", folder, ": ", error.message()));
  RETURN_IF_ERROR(FsyncPath(folder));
  if (std::rename(folder.c_str(), target.c_str()) != 0)
    return ErrnoStatus(absl::StrCat("rename ", folder, " to ", target), errno);
  return FsyncPath(ParentOf(target));
}

absl::Status MakeFolders(const std::string& path, int mode) {
  std::string prefix;
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    absl::StrAppend(&prefix, prefix.empty() && !path.starts_with('/') ? "" : "/", part);
    if (part.empty()) {
      prefix = prefix == "/" ? "" : prefix;
      continue;
    }
    if (mkdir(prefix.c_str(), mode) != 0 && errno != EEXIST) return ErrnoStatus(absl::StrCat("mkdir ", prefix), errno);
  }
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return ErrnoStatus(absl::StrCat("stat ", path), errno);
  if (!S_ISDIR(info.st_mode))
    return absl::AlreadyExistsError(absl::StrCat("mkdir ", path, ": a file of that name is in the way"));
  return absl::OkStatus();
}

absl::StatusOr<std::string> JoinBelow(const std::string& root, absl::string_view relative) {
  const auto refuse = [&](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("path \"", std::string(relative.substr(0, 200)), "\": ", std::string(why)));
  };
  if (relative.empty()) return refuse("is empty");
  if (relative.size() > 4096) return refuse("is over 4,096 bytes long");
  if (relative.find('\0') != absl::string_view::npos) return refuse("holds a NUL byte");
  if (relative.front() == '/') return refuse("is absolute; it must lie below its folder");
  for (const absl::string_view part : absl::StrSplit(relative, '/')) {
    if (part.empty() || part == "." || part == "..")
      return refuse("holds an empty, \".\" or \"..\" part; it must lie below its folder");
  }
  return absl::StrCat(root, "/", std::string(relative));
}

}  // namespace retort
