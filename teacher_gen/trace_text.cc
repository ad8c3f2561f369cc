#include "teacher_gen/trace_text.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace retort {
namespace {

constexpr absl::string_view kThink = "<think>";
// Enough of a prompt's end for kThink and the white space after it, be each character a token.
constexpr size_t kOpeningTokens = 32;

}  // namespace

TraceText::TraceText(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
  for (const char* token : {"<think>", "</think>"}) {
    const int32_t id = tokenizer_.TokenToId(token);
    if (id < 0) continue;
    const absl::StatusOr<bool> special = IsSpecial(id);
    if (special.ok() && *special) kept_.push_back(id);
  }
}

absl::StatusOr<bool> TraceText::IsSpecial(int32_t id) {
  const auto known = special_.find(id);
  if (known != special_.end()) return known->second;
  ASSIGN_OR_RETURN(const std::string without, tokenizer_.Decode({id}, true));
  ASSIGN_OR_RETURN(const std::string with, tokenizer_.Decode({id}, false));
  const bool special = without.empty() && !with.empty();
  special_[id] = special;
  return special;
}

absl::StatusOr<std::string> TraceText::Decode(const std::vector<int32_t>& ids) {
  const bool plain = std::none_of(ids.begin(), ids.end(),
                                  [&](int32_t id) { return std::find(kept_.begin(), kept_.end(), id) != kept_.end(); });
  if (plain) {
    absl::StatusOr<std::string> text = tokenizer_.Decode(ids, true);
    if (text.ok()) return text;
  }
  std::vector<int32_t> wanted;
  for (const int32_t id : ids) {
    const absl::StatusOr<bool> special = IsSpecial(id);
    const bool unknown = !special.ok();
    if (!unknown && (!*special || std::find(kept_.begin(), kept_.end(), id) != kept_.end())) wanted.push_back(id);
  }
  return tokenizer_.Decode(wanted, false);
}

absl::StatusOr<std::string> TraceText::DecodeAfter(const std::vector<int32_t>& prompt,
                                                   const std::vector<int32_t>& ids) {
  ASSIGN_OR_RETURN(std::string text, Decode(ids));
  const size_t tail = std::min(prompt.size(), kOpeningTokens);
  ASSIGN_OR_RETURN(const std::string before, tokenizer_.Decode({prompt.end() - tail, prompt.end()}, false));
  const absl::string_view trimmed = absl::StripTrailingAsciiWhitespace(before);
  if (!absl::EndsWith(trimmed, kThink) || absl::StartsWith(absl::StripLeadingAsciiWhitespace(text), kThink))
    return text;
  return before.substr(trimmed.size() - kThink.size()) + text;
}

std::string WithOpenedThink(absl::string_view text) {
  const size_t close = text.find("</think>");
  const bool opened = close == absl::string_view::npos || text.substr(0, close).find(kThink) != absl::string_view::npos;
  return absl::StrCat(opened ? "" : "<think>\n", text);
}

}  // namespace retort
