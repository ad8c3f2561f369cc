#include "cli/tokenize/line_reader.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace retort::cli {

absl::Status LineReader::Fill() {
  while (true) {
    const ssize_t got = read(fd_, buffer_.data(), buffer_.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return absl::InternalError(absl::StrCat("read: ", std::strerror(errno)));
    begin_ = 0;
    end_ = static_cast<size_t>(got);
    at_end_ = got == 0;
    return absl::OkStatus();
  }
}

void LineReader::Take(const char* data, size_t size) {
  started_ = true;
  if (line_.text.size() + size > kMaxLineBytes) {
    line_.too_long = true;
    line_.text = std::string();
  }
  if (!line_.too_long) line_.text.append(data, size);
}

absl::StatusOr<std::vector<Line>> LineReader::Next(size_t lines, size_t bytes) {
  std::vector<Line> taken;
  size_t size = 0;
  while (taken.size() < lines && size < bytes && !at_end_) {
    if (begin_ == end_) {
      pollfd waiting = {fd_, POLLIN, 0};
      if (!taken.empty() && poll(&waiting, 1, 0) == 0) break;
      RETURN_IF_ERROR(Fill());
      continue;
    }
    const char* data = buffer_.data() + begin_;
    const auto* newline = static_cast<const char*>(std::memchr(data, '\n', end_ - begin_));
    const size_t part = newline == nullptr ? end_ - begin_ : static_cast<size_t>(newline - data);
    Take(data, part);
    begin_ += part + (newline == nullptr ? 0 : 1);
    if (newline == nullptr) continue;
    size += line_.text.size();
    taken.push_back(std::exchange(line_, Line()));
    started_ = false;
  }
  if (at_end_ && started_) {
    taken.push_back(std::exchange(line_, Line()));
    started_ = false;
  }
  return taken;
}

}  // namespace retort::cli
