#include "cli/tokenize/show_mask.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/status.h"
#include "model/trl_example.h"

namespace retort::cli {
namespace {

// Control characters as they are written in JSON, so that a terminal shows them.
std::string Visible(const std::string& text) {
  std::string shown;
  for (const char c : text) {
    switch (c) {
      case '\n':
        shown += "\\n\n";
        break;
      case '\t':
        shown += "\\t";
        break;
      case '\r':
        shown += "\\r";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          absl::StrAppend(&shown, "\\x", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad2));
        } else {
          shown += c;
        }
    }
  }
  return shown;
}

}  // namespace

absl::StatusOr<std::vector<ShownToken>> ShowTokens(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                                                   const std::vector<int32_t>& labels) {
  std::vector<ShownToken> shown;
  std::vector<int32_t> pending;
  for (size_t i = 0; i < ids.size(); ++i) {
    pending.push_back(ids[i]);
    ASSIGN_OR_RETURN(const std::string text, tokenizer.Decode(pending, false));
    const bool cut = absl::string_view(text).find("\xef\xbf\xbd") != absl::string_view::npos;
    if (cut && pending.size() < 4 && i + 1 < ids.size()) continue;
    pending.clear();
    shown.push_back({Visible(text), labels[i] != kIgnoreLabel});
  }
  return shown;
}

std::string MaskText(const std::vector<ShownToken>& tokens, bool color, size_t at_most) {
  std::string out;
  const bool cut = at_most > 0 && tokens.size() > at_most;
  const size_t head = cut ? at_most / 2 : tokens.size();
  const size_t tail = cut ? tokens.size() - (at_most - head) : tokens.size();
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i == head && head < tail) {
      absl::StrAppend(&out, "\n... ", tail - head, " tokens ...\n");
      i = tail;
    }
    const bool on = tokens[i].trained;
    // Neighbours differ in shade, so that the ends of tokens are seen.
    if (color) {
      const char* shade = on ? (i % 2 == 0 ? "\x1b[30;42m" : "\x1b[30;102m") : (i % 2 == 0 ? "\x1b[90m" : "\x1b[37m");
      absl::StrAppend(&out, shade, absl::StrReplaceAll(tokens[i].text, {{"\n", absl::StrCat("\x1b[0m\n", shade)}}),
                      "\x1b[0m");
    } else {
      absl::StrAppend(&out, on ? "[" : "", tokens[i].text, on ? "]" : "|");
    }
  }
  return out;
}

}  // namespace retort::cli
