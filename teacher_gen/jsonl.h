// The JSONL side of `generate` and `score`: one line out for each line in, in the same order.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer.h"

namespace retort {

// The lines of a file, or of standard input for "-". Errors: kNotFound, kPermissionDenied, kResourceExhausted
// (a line over 64 MiB, or over 4 GiB in all).
absl::StatusOr<std::vector<std::string>> ReadLines(const std::string& path);

// The token ids that one input line means (`tokenizer` may be null: then only token_ids will do): {"token_ids"} as they
// are, {"text"} or {"prompt"} with the tokenizer's special tokens, {"messages"} (or a "prompt" of messages) through the
// chat template, with the keys of MakeTrlExample's conversations; `add_generation_prompt` is for lines that do not say.
// Errors: kInvalidArgument, kFailedPrecondition (no template).
absl::StatusOr<std::vector<int32_t>> LineToTokens(const Tokenizer* tokenizer, absl::string_view line,
                                                  bool add_generation_prompt);

// Takes finished lines in any order and writes them in order: to standard output ("-") as soon as the lines before are
// there, to a file all at once at the end (atomically, so that an interrupted run leaves nothing), nowhere for "".
class OrderedOutput {
 public:
  explicit OrderedOutput(std::string path) : path_(std::move(path)) {}

  absl::Status Put(int64_t index, const nlohmann::json& line);
  // The line becomes {"error": message}.
  absl::Status PutError(int64_t index, const absl::Status& error);
  // Errors: those of writing.
  absl::Status Finish();
  int64_t errors() const { return errors_; }
  int64_t done() const { return done_; }

 private:
  const std::string path_;
  int64_t next_ = 0;
  int64_t done_ = 0;
  int64_t errors_ = 0;
  std::map<int64_t, std::string> waiting_;
  std::string contents_;
};

// Says once, on standard error, that a sequence is longer than what its model was made for: what the model says of it
// is seldom sensible, but it is what was asked for. An empty verb says nothing.
class ContextWarning {
 public:
  ContextWarning(std::string verb, int64_t context_length) : verb_(std::move(verb)), context_length_(context_length) {}
  void Saw(int64_t tokens);

 private:
  const std::string verb_;
  const int64_t context_length_;
  bool said_ = false;
};

// A line of progress on standard error, where that is a terminal, at most five times a second.
class LineProgress {
 public:
  LineProgress(std::string verb, int64_t total);
  ~LineProgress();
  void Update(int64_t done, int64_t tokens);

 private:
  const std::string verb_;
  const int64_t total_;
  const bool terminal_;
  const double start_;
  double shown_ = 0.0;
};

}  // namespace retort
