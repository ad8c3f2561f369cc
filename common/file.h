// Files that are either whole or not there.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace retort {

// Largest file that ReadFile takes unless told otherwise; what may be larger is streamed or mapped.
inline constexpr int64_t kMaxReadFileBytes = int64_t{1} << 30;

// Errors: kNotFound, kPermissionDenied, kResourceExhausted (larger than `max_bytes`), kInternal.
absl::StatusOr<std::string> ReadFile(const std::string& path, int64_t max_bytes = kMaxReadFileBytes);

// Writes beside `path`, fsyncs, renames over it and fsyncs the folder: a crash leaves the old file or the new one, and
// at worst a "<path>.tmp.<16 hex digits>" beside it that nobody reads.
// `mode` is set before a byte is written. Errors: kResourceExhausted (disk full; nothing is left behind),
// kPermissionDenied, kNotFound (no such folder), kInternal.
absl::Status WriteFileAtomically(const std::string& path, absl::string_view contents, int mode = 0644);

// fsyncs every file and folder under `folder`, renames it to `target` (which must not exist) and fsyncs its parent.
absl::Status PublishFolder(const std::string& folder, const std::string& target);

absl::Status FsyncPath(const std::string& path);

// mkdir -p; each folder made gets `mode`.
absl::Status MakeFolders(const std::string& path, int mode = 0755);

// Joins `relative` below `root`. Errors: kInvalidArgument when it is absolute, empty, holds NUL or a "." or ".." part,
// or is over 4,096 bytes.
absl::StatusOr<std::string> JoinBelow(const std::string& root, absl::string_view relative);

// Owns a file descriptor.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  ~UniqueFd() { Reset(); }
  UniqueFd(UniqueFd&& other) noexcept : fd_(other.Release()) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) Reset(other.Release());
    return *this;
  }
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int Release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }
  void Reset(int fd = -1);

 private:
  int fd_ = -1;
};

// WriteFileAtomically for what is written piece by piece: `path` changes at Commit, all at once; without one nothing is
// left behind. What is there and is no plain file (a device, a pipe) is written into as it is. One thread at a time.
class AtomicFile {
 public:
  static absl::StatusOr<AtomicFile> Create(const std::string& path, int mode = 0644);
  AtomicFile(AtomicFile&& other) noexcept = default;
  ~AtomicFile();

  absl::Status Append(absl::string_view contents);
  // fsyncs, renames, fsyncs the folder. Call once, last.
  absl::Status Commit();

 private:
  AtomicFile(std::string path, std::string temporary, UniqueFd fd)
      : path_(std::move(path)), temporary_(std::move(temporary)), fd_(std::move(fd)) {}

  std::string path_;
  std::string temporary_;
  UniqueFd fd_;
};

}  // namespace retort
