#include "worker/task_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "spdlog/spdlog.h"

namespace retort::worker {
namespace {

constexpr size_t kMaxLineKept = 1024;

}  // namespace

absl::StatusOr<TaskLog> TaskLog::Open(std::string path, int64_t max_bytes) {
  UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("open ", path), errno);
  struct stat info = {};
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(absl::StrCat("stat ", path), errno);
  return TaskLog(std::move(path), std::move(fd), info.st_size, max_bytes);
}

void TaskLog::Append(absl::string_view data) {
  for (const char c : data) {
    if (c == '\n') {
      if (!absl::StripAsciiWhitespace(unfinished_line_).empty()) last_line_ = unfinished_line_;
      unfinished_line_.clear();
    } else if (unfinished_line_.size() < kMaxLineKept) {
      unfinished_line_.push_back(c);
    }
  }
  if (full_) return;
  if (size_bytes_ + static_cast<int64_t>(data.size()) <= max_bytes_) {
    Write(data);
    return;
  }
  full_ = true;
  Write(absl::StrCat("\n[the log reached its limit of ", max_bytes_, " bytes; later output is not kept]\n"));
}

void TaskLog::Finish() {
  if (!unfinished_line_.empty()) Append("\n");
}

std::string TaskLog::LastLine() const {
  return absl::StripAsciiWhitespace(unfinished_line_).empty() ? last_line_ : unfinished_line_;
}

void TaskLog::Write(absl::string_view data) {
  while (!data.empty()) {
    const ssize_t written = write(fd_.get(), data.data(), data.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      full_ = true;
      spdlog::warn("task_log_unwritable path={} error=\"{}\"", path_, ErrnoStatus("write", errno).ToString());
      return;
    }
    size_bytes_ += written;
    data.remove_prefix(static_cast<size_t>(written));
  }
}

}  // namespace retort::worker
