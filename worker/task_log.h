// The output of one task process, as a file of bounded size.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/file.h"

namespace retort::worker {

inline constexpr int64_t kMaxTaskLogBytes = int64_t{64} << 20;

// Not thread-safe.
class TaskLog {
 public:
  // Opens or goes on with `path`. Errors: kNotFound (no such folder), kPermissionDenied, kInternal.
  static absl::StatusOr<TaskLog> Open(std::string path, int64_t max_bytes = kMaxTaskLogBytes);

  // What does not fit below the limit is left out; a last line says so. A disk that is full loses output, never the
  // task.
  void Append(absl::string_view data);
  // Ends an unfinished last line.
  void Finish();

  const std::string& path() const { return path_; }
  int64_t size_bytes() const { return size_bytes_; }
  // The last line that was not blank, at most 1,024 bytes of it.
  std::string LastLine() const;

 private:
  TaskLog(std::string path, UniqueFd fd, int64_t size_bytes, int64_t max_bytes)
      : path_(std::move(path)), fd_(std::move(fd)), size_bytes_(size_bytes), max_bytes_(max_bytes) {}
  void Write(absl::string_view data);

  std::string path_;
  UniqueFd fd_;
  int64_t size_bytes_;
  int64_t max_bytes_;
  bool full_ = false;
  std::string last_line_;
  std::string unfinished_line_;
};

}  // namespace retort::worker
