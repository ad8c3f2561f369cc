#include "teacher_gen/jsonl.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <fstream>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/json.h"
#include "common/json_line.h"
#include "common/status.h"
#include "model/trl_example.h"

namespace retort {
namespace {

constexpr size_t kMaxLineBytes = size_t{64} << 20;
constexpr size_t kMaxInputBytes = size_t{4} << 30;

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

absl::StatusOr<std::vector<int32_t>> TokenIds(const nlohmann::json& value) {
  if (!value.is_array()) return absl::InvalidArgumentError("token_ids: must be a list of integers");
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (const auto& id : value) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > std::numeric_limits<int32_t>::max())
      return absl::InvalidArgumentError("token_ids: must be a list of integers from 0 on");
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ReadLines(const std::string& path) {
  std::ifstream file;
  std::string source = "standard input";
  if (path != "-") {
    source = path;
    errno = 0;
    file.open(path, std::ios::binary);
    if (!file) return ErrnoStatus(absl::StrCat("open ", path), errno);
  }
  std::istream& in = path == "-" ? std::cin : file;
  std::vector<std::string> lines;
  std::string line;
  size_t total = 0;
  while (std::getline(in, line)) {
    total += line.size();
    if (line.size() > kMaxLineBytes || total > kMaxInputBytes)
      return absl::ResourceExhaustedError(absl::StrCat(source, ": a line over 64 MiB, or over 4 GiB in all"));
    lines.push_back(line);
  }
  if (in.bad()) return absl::InternalError(absl::StrCat("read ", source, " failed"));
  return lines;
}

absl::StatusOr<std::vector<int32_t>> LineToTokens(const Tokenizer* tokenizer, absl::string_view line,
                                                  bool add_generation_prompt) {
  if (line.find_first_not_of(" \t\r") == absl::string_view::npos)
    return absl::InvalidArgumentError("the line is empty");
  ASSIGN_OR_RETURN(const nlohmann::json row, ParseJson(line, "line"));
  RETURN_IF_ERROR(CheckIntegers(line));
  if (!row.is_object()) return absl::InvalidArgumentError("the line is not a JSON object");
  if (row.contains("token_ids")) return TokenIds(row["token_ids"]);
  if (tokenizer == nullptr) {
    return absl::FailedPreconditionError("the model folder has no tokenizer: only \"token_ids\" can be taken");
  }
  // Parsed again, for the order of the keys, which templates may print.
  auto ordered = nlohmann::ordered_json::parse(line);
  if (row.contains("prompt") && !row.contains("text") && !row.contains("messages")) {
    if (row.contains("completion")) {
      return absl::InvalidArgumentError(
          "completion: only tokenize takes a prompt with its completion; give both as one text, or as messages");
    }
    // A prompt is a text or the turns before the answer.
    ordered[row["prompt"].is_array() ? "messages" : "text"] = ordered["prompt"];
  }
  ordered.erase("prompt");
  if (ordered.contains("text") || ordered.contains("messages")) {
    if (!ordered.contains("add_generation_prompt")) ordered["add_generation_prompt"] = add_generation_prompt;
    if (ordered.contains("text")) ordered.erase("messages");
    ASSIGN_OR_RETURN(TrlExample example, MakeTrlExample(*tokenizer, ordered, {}));
    return std::move(example.ids);
  }
  return absl::InvalidArgumentError(R"(needs one of "token_ids", "text", "prompt", "messages")");
}

absl::Status OrderedOutput::Put(int64_t index, const nlohmann::json& line) {
  if (path_.empty()) {
    ++done_;
    return absl::OkStatus();
  }
  // Text of a model may hold half a character: replaced, not an error.
  waiting_[index] = WithoutLineBreaks(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)) + "\n";
  ++done_;
  std::string ready;
  for (auto it = waiting_.begin(); it != waiting_.end() && it->first == next_; it = waiting_.erase(it), ++next_)
    ready += it->second;
  if (path_ != "-") {
    contents_ += ready;
    return absl::OkStatus();
  }
  if (std::fwrite(ready.data(), 1, ready.size(), stdout) != ready.size() || std::fflush(stdout) != 0)
    return ErrnoStatus("write to standard output", errno);
  return absl::OkStatus();
}

absl::Status OrderedOutput::PutError(int64_t index, const absl::Status& error) {
  ++errors_;
  return Put(index, {{"error", std::string(error.message())}});
}

absl::Status OrderedOutput::Finish() {
  if (path_ == "-" || path_.empty()) return absl::OkStatus();
  return WriteFileAtomically(path_, contents_);
}

void ContextWarning::Saw(int64_t tokens) {
  if (said_ || tokens <= context_length_) return;
  said_ = true;
  if (verb_.empty()) return;
  std::fprintf(stderr, "%s: warning: a sequence of %lld tokens goes past the model's context of %lld\n", verb_.c_str(),
               static_cast<long long>(tokens), static_cast<long long>(context_length_));
}

LineProgress::LineProgress(std::string verb, int64_t total)
    : verb_(std::move(verb)), total_(total), terminal_(isatty(STDERR_FILENO) == 1 && total > 0), start_(Now()) {}

LineProgress::~LineProgress() {
  if (terminal_ && shown_ > 0.0) std::fputc('\n', stderr);
}

void LineProgress::Update(int64_t done, int64_t tokens) {
  const double now = Now();
  if (!terminal_ || now - shown_ < 0.2) return;
  shown_ = now;
  const double seconds = now - start_;
  const double left = done > 0 ? seconds / static_cast<double>(done) * static_cast<double>(total_ - done) : 0.0;
  absl::FPrintF(stderr, "\r%s %d/%d lines, %.0f tokens/s, %d:%02d left   ", verb_, done, total_,
                static_cast<double>(tokens) / seconds, static_cast<int>(left) / 60, static_cast<int>(left) % 60);
  std::fflush(stderr);
}

}  // namespace retort
