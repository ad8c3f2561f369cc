#include "common/json.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/file.h"
#include "common/status.h"

namespace retort {
namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxRowBytes = size_t{64} << 20;
constexpr absl::string_view kBlank = " \t\r\n";

absl::StatusOr<nlohmann::json> Parse(absl::string_view text) {
  bool too_deep = false;
  const nlohmann::json::parser_callback_t limit_depth = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    if (depth > kMaxDepth) too_deep = true;
    return true;
  };
  // The parser itself keeps no recursion; only the depth of what it builds is bounded here.
  try {
    nlohmann::json value = nlohmann::json::parse(text.begin(), text.end(), limit_depth);
    if (too_deep) return absl::InvalidArgumentError(absl::StrCat("nests deeper than ", kMaxDepth, " levels"));
    return value;
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("not valid JSON: ", error.what()));
  }
}

using RowFunction = std::function<absl::Status(int64_t line, absl::string_view text, const nlohmann::json& row)>;

absl::Status TooLarge(const std::string& where) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": the row is over ", kMaxRowBytes, " bytes"));
}

absl::Status CallRow(const std::string& path, int64_t line, absl::string_view text, const RowFunction& row) {
  const std::string where = absl::StrCat(path, ":", line);
  auto value = Parse(text);
  if (!value.ok()) return WithContext(value.status(), where);
  if (const absl::Status exact = CheckIntegers(text); !exact.ok()) return WithContext(exact, where);
  if (const absl::Status status = row(line, text, *value); !status.ok()) return WithContext(status, where);
  return absl::OkStatus();
}

absl::Status ReadFailed(const std::string& path, int64_t line) {
  return absl::InternalError(absl::StrCat("read ", path, ": failed after line ", line));
}

absl::Status ForEachLine(std::istream& file, const std::string& path, const RowFunction& row) {
  std::string text;
  int64_t line = 0;
  while (std::getline(file, text)) {
    ++line;
    if (text.size() > kMaxRowBytes) return TooLarge(absl::StrCat(path, ":", line));
    if (!text.empty() && text.back() == '\r') text.pop_back();
    if (text.find_first_not_of(" \t") == std::string::npos) continue;
    RETURN_IF_ERROR(CallRow(path, line, text, row));
  }
  if (file.bad()) return ReadFailed(path, line);
  return absl::OkStatus();
}

// The elements of the list that the file is, one at a time. Cuts them where commas and brackets outside of strings say;
// whether they are JSON is for the parser.
class ListReader {
 public:
  ListReader(std::istream& file, const std::string& path, const RowFunction& row)
      : file_(file), path_(path), row_(row) {}

  absl::Status Run() {
    while (true) {
      int c = file_.get();
      if (file_.bad()) return ReadFailed(path_, line_);
      if (c == EOF) return Wrong("the list does not end: ] is missing");
      if (c == '[' && !opened_) {
        opened_ = true;
        continue;
      }
      if (!opened_) {  // blank, as who calls has seen
        line_ += c == '\n' ? 1 : 0;
        continue;
      }
      if (!quoted_ && depth_ == 0 && (c == ',' || c == ']')) {
        RETURN_IF_ERROR(Flush(c == ']'));
        if (c == ']') return ExpectEnd();
        continue;
      }
      RETURN_IF_ERROR(Take(static_cast<char>(c)));
    }
  }

 private:
  absl::Status Wrong(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(path_, ":", line_, ": ", what));
  }

  absl::Status Take(char c) {
    if (element_.empty() && kBlank.find(c) == absl::string_view::npos) begins_ = line_;
    if (quoted_) {
      quoted_ = escaped_ || c != '"';
      escaped_ = !escaped_ && c == '\\';
    } else if (c == '"') {
      quoted_ = true;
    } else if (c == '{' || c == '[') {
      ++depth_;
    } else if (c == '}' || c == ']') {
      --depth_;
    }
    if (c == '\n') ++line_;
    if (!quoted_ && c != '"' && kBlank.find(c) != absl::string_view::npos) {
      // One blank stands for all, so that a row is a line wherever it goes.
      if (!element_.empty() && element_.back() != ' ') element_ += ' ';
      return absl::OkStatus();
    }
    if (depth_ < 0) return Wrong("not valid JSON: } without its {");
    if (element_.size() >= kMaxRowBytes) return TooLarge(absl::StrCat(path_, ":", begins_));
    element_ += c;
    return absl::OkStatus();
  }

  absl::Status Flush(bool last) {
    if (element_.empty()) {
      if (last && rows_ == 0) return absl::OkStatus();
      return Wrong("a comma without a row after or before it");
    }
    ++rows_;
    if (element_.back() == ' ') element_.pop_back();
    RETURN_IF_ERROR(CallRow(path_, begins_, element_, row_));
    element_.clear();
    return absl::OkStatus();
  }

  absl::Status ExpectEnd() {
    for (int c = file_.get(); c != EOF; c = file_.get()) {
      if (c == '\n') ++line_;
      if (kBlank.find(static_cast<char>(c)) == absl::string_view::npos) {
        return Wrong("text after the list's end; a file is one JSON list, or one row a line");
      }
    }
    return absl::OkStatus();
  }

  std::istream& file_;
  const std::string& path_;
  const RowFunction& row_;
  std::string element_;
  int64_t line_ = 1;
  int64_t begins_ = 1;
  int64_t rows_ = 0;
  int depth_ = 0;
  bool opened_ = false;
  bool quoted_ = false;
  bool escaped_ = false;
};

}  // namespace

absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text, absl::string_view source) {
  auto value = Parse(text);
  if (!value.ok()) return WithContext(value.status(), source);
  return value;
}

absl::Status CheckIntegers(absl::string_view json) {
  constexpr size_t kLongestExact = 18;  // digits that 64 bits hold whatever they are
  bool quoted = false;
  for (size_t i = 0; i < json.size(); ++i) {
    const char c = json[i];
    if (quoted) {
      if (c == '\\') ++i;
      quoted = c != '"';
    } else if (c == '"') {
      quoted = true;
    } else if (c == '-' || absl::ascii_isdigit(static_cast<unsigned char>(c))) {
      const size_t end = std::min(json.find_first_not_of("+-.0123456789Ee", i), json.size());
      const absl::string_view number = json.substr(i, end - i);
      int64_t negative = 0;
      uint64_t positive = 0;
      if (number.size() > kLongestExact && number.find_first_of(".Ee") == absl::string_view::npos &&
          !absl::SimpleAtoi(number, &negative) && !absl::SimpleAtoi(number, &positive)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "the integer ", number.substr(0, 40), " has more than 64 bits and would not stay what it is: quote it"));
      }
      i = end - 1;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, int64_t{256} << 20));
  return ParseJson(text, path);
}

absl::Status ForEachJsonLine(
    const std::string& path,
    const std::function<absl::Status(int64_t line, absl::string_view text, const nlohmann::json& row)>& row) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file) return ErrnoStatus(absl::StrCat("open ", path), errno == 0 ? EIO : errno);
  int first = file.get();
  while (first != EOF && kBlank.find(static_cast<char>(first)) != absl::string_view::npos) first = file.get();
  if (first == EOF && file.bad()) return ReadFailed(path, 0);
  file.clear();
  file.seekg(0);
  return first == '[' ? ListReader(file, path, row).Run() : ForEachLine(file, path, row);
}

}  // namespace retort
