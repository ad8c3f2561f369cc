// The lines of a stream that may be longer than memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace retort::cli {

inline constexpr size_t kMaxLineBytes = size_t{64} << 20;

struct Line {
  std::string text;       // without its end
  bool too_long = false;  // over kMaxLineBytes: read over, not kept
};

// Reads a file descriptor, which it does not own. One thread at a time.
class LineReader {
 public:
  explicit LineReader(int fd) : fd_(fd), buffer_(size_t{1} << 20) {}

  // The next lines, until they are `lines` or more than `bytes`; empty at the end. A last line needs no end. What is
  // there of a pipe is taken before it is waited for more. Errors: kInternal.
  absl::StatusOr<std::vector<Line>> Next(size_t lines, size_t bytes);

 private:
  absl::Status Fill();
  void Take(const char* data, size_t size);

  const int fd_;
  std::vector<char> buffer_;
  size_t begin_ = 0;  // of what is read and not taken
  size_t end_ = 0;
  bool at_end_ = false;
  bool started_ = false;  // of a line whose end is not read yet
  Line line_;
};

}  // namespace retort::cli
