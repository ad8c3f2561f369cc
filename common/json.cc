#include "common/json.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/file.h"
#include "common/status.h"

namespace retort {
namespace {

constexpr int kMaxDepth = 64;
constexpr size_t kMaxLineBytes = size_t{64} << 20;

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

}  // namespace

absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text, absl::string_view source) {
  auto value = Parse(text);
  if (!value.ok()) return WithContext(value.status(), source);
  return value;
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
  std::string text;
  int64_t line = 0;
  while (std::getline(file, text)) {
    ++line;
    const std::string where = absl::StrCat(path, ":", line);
    if (text.size() > kMaxLineBytes)
      return absl::InvalidArgumentError(absl::StrCat(where, ": line is over ", kMaxLineBytes, " bytes"));
    if (!text.empty() && text.back() == '\r') text.pop_back();
    if (text.find_first_not_of(" \t") == std::string::npos) continue;
    auto value = Parse(text);
    if (!value.ok()) return WithContext(value.status(), where);
    if (const absl::Status status = row(line, text, *value); !status.ok()) return WithContext(status, where);
  }
  if (file.bad()) return absl::InternalError(absl::StrCat("read ", path, ": failed after line ", line));
  return absl::OkStatus();
}

}  // namespace retort
