#include "curate/answer.h"

#include <re2/re2.h>

#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "curate/number.h"

namespace retort::curate {
namespace {

constexpr int64_t kMaxPatternMemoryBytes = 8 << 20;

std::unique_ptr<RE2> Compile(absl::string_view pattern) {
  RE2::Options options;
  options.set_log_errors(false);
  options.set_dot_nl(true);
  options.set_max_mem(kMaxPatternMemoryBytes);
  return std::make_unique<RE2>(std::string(pattern), options);
}

// The text between `open` (the position after the brace) and its closing brace.
std::optional<std::string> BalancedFrom(absl::string_view text, size_t open) {
  int depth = 1;
  for (size_t i = open; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '{') {
      ++depth;
    } else if (text[i] == '}' && --depth == 0) {
      return std::string(absl::StripAsciiWhitespace(text.substr(open, i - open)));
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<absl::string_view> AfterThinking(absl::string_view text) {
  constexpr absl::string_view kClose = "</think>";
  const size_t close = text.rfind(kClose);
  const size_t open = text.rfind("<think>");
  if (close != absl::string_view::npos) {
    if (open != absl::string_view::npos && open > close) return std::nullopt;
    return text.substr(close + kClose.size());
  }
  if (open != absl::string_view::npos) return std::nullopt;
  return text;
}

std::optional<std::string> LastBoxed(absl::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    const size_t boxed = text.substr(0, end).rfind("\\boxed");
    const size_t fbox = text.substr(0, end).rfind("\\fbox");
    if (boxed == absl::string_view::npos && fbox == absl::string_view::npos) return std::nullopt;
    const bool is_boxed = fbox == absl::string_view::npos || (boxed != absl::string_view::npos && boxed > fbox);
    const size_t start = is_boxed ? boxed : fbox;
    size_t open = start + (is_boxed ? 6 : 5);
    while (open < text.size() && text[open] == ' ') ++open;
    if (open < text.size() && text[open] == '{') {
      auto contents = BalancedFrom(text, open + 1);
      if (contents.has_value()) return contents;
    }
    end = start;
  }
  return std::nullopt;
}

Verifier::Verifier(v1::VerifySpec spec, std::unique_ptr<RE2> pattern)
    : spec_(std::move(spec)), pattern_(std::move(pattern)) {}
Verifier::Verifier(Verifier&&) noexcept = default;
Verifier& Verifier::operator=(Verifier&&) noexcept = default;
Verifier::~Verifier() = default;

absl::StatusOr<Verifier> Verifier::Make(const v1::VerifySpec& spec) {
  std::unique_ptr<RE2> pattern;
  if (!spec.answer_pattern().empty()) {
    pattern = Compile(spec.answer_pattern());
    if (!pattern->ok()) {
      return absl::InvalidArgumentError(absl::StrCat("verify.answer_pattern \"", spec.answer_pattern(),
                                                     "\": is not an RE2 regular expression: ", pattern->error()));
    }
  }
  return Verifier(spec, std::move(pattern));
}

std::optional<std::string> Verifier::Extract(absl::string_view text, bool truncated) const {
  const auto answer_part = AfterThinking(text);
  if (!answer_part.has_value()) return std::nullopt;
  if (pattern_ != nullptr) {
    const re2::StringPiece whole(answer_part->data(), answer_part->size());
    const int group = pattern_->NumberOfCapturingGroups() > 0 ? 1 : 0;
    std::vector<re2::StringPiece> groups(static_cast<size_t>(group) + 1);
    std::optional<std::string> last;
    for (size_t at = 0;
         at <= whole.size() && pattern_->Match(whole, at, whole.size(), RE2::UNANCHORED, groups.data(), group + 1);) {
      last = std::string(groups[static_cast<size_t>(group)].data(), groups[static_cast<size_t>(group)].size());
      const auto end = static_cast<size_t>(groups[0].data() + groups[0].size() - whole.data());
      at = groups[0].empty() ? end + 1 : end;
    }
    if (last.has_value()) *last = std::string(absl::StripAsciiWhitespace(*last));
    return last;
  }
  auto boxed = LastBoxed(*answer_part);
  if (boxed.has_value()) return boxed;
  if (spec_.kind() == v1::VERIFIER_KIND_NUMBER && !truncated) return FindLastNumber(*answer_part);
  return std::nullopt;
}

Verdict Verifier::Verify(absl::string_view text, absl::string_view reference, bool truncated) const {
  if (spec_.kind() == v1::VERIFIER_KIND_UNSPECIFIED) return Verdict::kCorrect;
  const std::string expected(absl::StripAsciiWhitespace(reference));
  if (expected.empty()) return Verdict::kNoReference;
  const auto answer = Extract(text, truncated);
  if (!answer.has_value()) return Verdict::kNoAnswer;
  if (spec_.kind() == v1::VERIFIER_KIND_REGEX) {
    const auto pattern = Compile(expected);
    if (!pattern->ok()) return Verdict::kNoReference;
    return RE2::FullMatch(*answer, *pattern) ? Verdict::kCorrect : Verdict::kWrong;
  }
  if (*answer == expected) return Verdict::kCorrect;
  if (spec_.kind() != v1::VERIFIER_KIND_NUMBER) return Verdict::kWrong;
  const auto expected_number = Number::Parse(expected);
  if (!expected_number.has_value()) return Verdict::kNoReference;
  const auto number = Number::Parse(*answer);
  return number.has_value() && *number == *expected_number ? Verdict::kCorrect : Verdict::kWrong;
}

}  // namespace retort::curate
