#include "cli/tokenize/row.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/tokenize/show_mask.h"
#include "common/json.h"
#include "common/json_line.h"
#include "common/status.h"
#include "model/trl_example.h"

namespace retort::cli {
namespace {

using json = nlohmann::ordered_json;

constexpr int kMaxDepth = 100;

// Deeper JSON than this would be met by recursion further on.
bool TooDeep(const std::string& text) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      quoted = c != '"';
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

absl::StatusOr<json> ParseRow(const Line& line) {
  if (line.too_long) {
    return absl::InvalidArgumentError(absl::StrCat("the line is over the limit of ", kMaxLineBytes, " bytes"));
  }
  if (line.text.find_first_not_of(" \t\r") == std::string::npos) return absl::InvalidArgumentError("the line is empty");
  if (TooDeep(line.text)) {
    return absl::InvalidArgumentError(absl::StrCat("the JSON nests deeper than ", kMaxDepth, " levels"));
  }
  try {
    json row = json::parse(line.text);
    RETURN_IF_ERROR(CheckIntegers(line.text));
    return row;
  } catch (const json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("not JSON: ", error.what()));
  }
}

void AppendString(const std::string& text, std::string* out) {
  *out += WithoutLineBreaks(json(text).dump(-1, ' ', false, json::error_handler_t::replace));
}

void AppendIds(const char* name, const std::vector<int32_t>& ids, std::string* out) {
  absl::StrAppend(out, ", \"", name, "\": [");
  char digits[16];
  for (size_t i = 0; i < ids.size(); ++i) {
    if (i > 0) *out += ", ";
    out->append(digits, std::to_chars(digits, digits + sizeof(digits), ids[i]).ptr);
  }
  *out += ']';
}

absl::StatusOr<std::string> Decoded(const Tokenizer& tokenizer, const json& row, bool skip_special_tokens) {
  if (!row.is_object() || !row.contains("token_ids")) return absl::InvalidArgumentError("the row has no token_ids");
  if (!row["token_ids"].is_array()) return absl::InvalidArgumentError("token_ids: not a list");
  std::vector<int32_t> ids;
  ids.reserve(row["token_ids"].size());
  for (const json& id : row["token_ids"]) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX ||
        (id.is_number_unsigned() && id.get<uint64_t>() > INT32_MAX)) {
      return absl::InvalidArgumentError(absl::StrCat("token_ids[", ids.size(), "]: no token id"));
    }
    // Ids may have gaps: then the last ones are above the size of the vocabulary.
    if (id.get<int64_t>() >= tokenizer.model_vocab_size()) {
      const auto alone = tokenizer.Decode({id.get<int32_t>()}, false);
      if (!alone.ok() || alone->empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat("token_ids[", ids.size(), "]: ", id.get<int64_t>(), " is outside the vocabulary"));
      }
    }
    ids.push_back(id.get<int32_t>());
  }
  ASSIGN_OR_RETURN(const std::string text, tokenizer.Decode(ids, skip_special_tokens));
  std::string line = "{\"text\": ";
  AppendString(text, &line);
  return line + "}\n";
}

absl::StatusOr<std::string> Shown(const Tokenizer& tokenizer, const TrlExample& example, bool color) {
  ASSIGN_OR_RETURN(const std::vector<ShownToken> tokens, ShowTokens(tokenizer, example.ids, example.labels));
  const auto untrained = std::count(example.labels.begin(), example.labels.end(), kIgnoreLabel);
  return absl::StrCat(MaskText(tokens, color), "\n-- ", example.ids.size(), " tokens, ",
                      static_cast<int64_t>(example.ids.size()) - untrained, " trained\n");
}

absl::StatusOr<RowOutput> Run(const Tokenizer& tokenizer, const Line& line, const RowOptions& options) {
  ASSIGN_OR_RETURN(const json row, ParseRow(line));
  RowOutput output;
  if (options.decode) {
    ASSIGN_OR_RETURN(output.line, Decoded(tokenizer, row, options.skip_special_tokens));
    return output;
  }
  if (row.is_object() && row.contains("token_ids") && !row.contains("text")) {
    return absl::InvalidArgumentError("the row holds token_ids: use --decode to turn them into text");
  }
  TrlOptions trl;
  trl.labels = options.mask;
  ASSIGN_OR_RETURN(const TrlExample example, MakeTrlExample(tokenizer, row, trl));
  output.prompt_diverges = example.prompt_diverges;
  if (options.show) {
    ASSIGN_OR_RETURN(output.line, Shown(tokenizer, example, options.color));
    return output;
  }
  output.line.reserve(example.text.size() + example.ids.size() * (options.mask ? 14 : 7) + 64);
  output.line = "{\"text\": ";
  AppendString(example.text, &output.line);
  AppendIds("token_ids", example.ids, &output.line);
  if (options.mask) AppendIds("labels", example.labels, &output.line);
  output.line += "}\n";
  return output;
}

}  // namespace

RowOutput RunRow(const Tokenizer& tokenizer, const Line& line, const RowOptions& options) {
  absl::StatusOr<RowOutput> done = Run(tokenizer, line, options);
  if (done.ok()) return *std::move(done);
  RowOutput output;
  output.error = std::string(done.status().message());
  output.line = "{\"error\": ";
  AppendString(output.error, &output.line);
  output.line += "}\n";
  return output;
}

}  // namespace retort::cli
