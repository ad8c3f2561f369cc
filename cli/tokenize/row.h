// One line of `distctl tokenize`: in, and out.
#pragma once

#include <string>
#include <vector>

#include "cli/tokenize/line_reader.h"
#include "model/tokenizer.h"

namespace retort::cli {

struct RowOptions {
  bool mask = false;
  bool decode = false;
  bool skip_special_tokens = false;
  bool show = false;   // tokens to look at, instead of JSON
  bool color = false;  // of those: else marks
};

struct RowOutput {
  std::string line;   // with its newline
  std::string error;  // empty: done
  bool prompt_diverges = false;
};

// Never fails: what cannot be done is {"error": ...}. Thread-safe.
RowOutput RunRow(const Tokenizer& tokenizer, const Line& line, const RowOptions& options);

}  // namespace retort::cli
