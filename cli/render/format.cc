#include "cli/render/format.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/render/terminal.h"

namespace retort::cli {
namespace {

// Length in bytes of the escape sequence at the start of `text`; 0: none.
size_t EscapeLength(absl::string_view text) {
  if (text.size() < 2 || text[0] != '\x1b' || text[1] != '[') return 0;
  size_t i = 2;
  while (i < text.size() && (text[i] < '@' || text[i] > '~')) ++i;
  return std::min(i + 1, text.size());
}

// Length in bytes of the code point at the start of `text`.
size_t CodePointLength(absl::string_view text) {
  size_t i = 1;
  while (i < text.size() && (static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) ++i;
  return i;
}

}  // namespace

std::string FormatCount(int64_t value) {
  std::string digits = absl::StrCat(value);
  const bool negative = digits[0] == '-';
  if (negative) digits.erase(0, 1);
  for (int i = static_cast<int>(digits.size()) - 3; i > 0; i -= 3) digits.insert(static_cast<size_t>(i), 1, ',');
  return negative ? "-" + digits : digits;
}

std::string FormatSeconds(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "-";
  if (seconds < 9.95) return absl::StrFormat("%.1fs", seconds);
  const int64_t whole = std::llround(std::min(seconds, 1e15));
  if (whole < 60) return absl::StrCat(whole, "s");
  if (whole < 3600) return absl::StrFormat("%dm %02ds", whole / 60, whole % 60);
  if (whole < 86400) return absl::StrFormat("%dh %02dm", whole / 3600, whole % 3600 / 60);
  return absl::StrFormat("%dd %02dh", whole / 86400, whole % 86400 / 3600);
}

std::string FormatBytes(int64_t bytes) {
  if (bytes < 1000) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes);
  const char* unit = "";
  for (const char* next : {"KB", "MB", "GB", "TB", "PB"}) {
    if (value < 999.5) break;
    value /= 1000;
    unit = next;
  }
  return absl::StrFormat(value < 9.95 ? "%.1f %s" : "%.0f %s", value, unit);
}

std::string FormatRate(double per_second) {
  if (!std::isfinite(per_second) || per_second <= 0) return "0";
  const int digits = std::max(0, 2 - static_cast<int>(std::floor(std::log10(per_second))));
  return absl::StrFormat("%.*f", std::min(digits, 6), per_second);
}

std::string FormatPercent(double share) {
  if (std::isnan(share)) return "-";
  return absl::StrFormat("%.1f%%", 100 * share);
}

std::string Sparkline(absl::Span<const double> values, int width, bool unicode) {
  std::vector<double> points;
  for (const double value : values) {
    if (std::isfinite(value)) points.push_back(value);
  }
  if (points.size() < 2 || width < 2) return "";
  if (points.size() > static_cast<size_t>(width)) {
    std::vector<double> means;
    for (int i = 0; i < width; ++i) {
      const size_t begin = points.size() * i / width;
      const size_t end = std::max(begin + 1, points.size() * (i + 1) / width);
      double sum = 0;
      for (size_t j = begin; j < end; ++j) sum += points[j];
      means.push_back(sum / static_cast<double>(end - begin));
    }
    points = std::move(means);
  }
  static constexpr const char* kBlocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  const auto [low, high] = std::minmax_element(points.begin(), points.end());
  const double range = *high - *low;
  std::string line;
  for (const double value : points) {
    const double share = range > 0 ? (value - *low) / range : 0.5;
    if (unicode) {
      line += kBlocks[std::min(7, static_cast<int>(share * 8))];
    } else {
      line += static_cast<char>('0' + std::min(9, static_cast<int>(share * 10)));
    }
  }
  return line;
}

int VisibleWidth(absl::string_view text) {
  int width = 0;
  while (!text.empty()) {
    if (const size_t escape = EscapeLength(text); escape > 0) {
      text.remove_prefix(escape);
      continue;
    }
    text.remove_prefix(CodePointLength(text));
    ++width;
  }
  return width;
}

std::string Truncate(absl::string_view text, int width, bool unicode) {
  if (VisibleWidth(text) <= width) return std::string(text);
  const std::string mark = unicode ? "…" : "...";
  const int kept = std::max(0, width - VisibleWidth(mark));
  std::string cut;
  bool styled = false;
  for (int used = 0; !text.empty();) {
    if (const size_t escape = EscapeLength(text); escape > 0) {
      absl::StrAppend(&cut, text.substr(0, escape));
      styled = true;
      text.remove_prefix(escape);
      continue;
    }
    if (used == kept) break;
    const size_t length = CodePointLength(text);
    absl::StrAppend(&cut, text.substr(0, length));
    text.remove_prefix(length);
    ++used;
  }
  return absl::StrCat(cut, mark, styled ? "\x1b[0m" : "");
}

std::string Pad(absl::string_view text, int width) {
  const int missing = std::abs(width) - VisibleWidth(text);
  if (missing <= 0) return std::string(text);
  const std::string spaces(static_cast<size_t>(missing), ' ');
  return width < 0 ? absl::StrCat(spaces, text) : absl::StrCat(text, spaces);
}

Table::Table(std::vector<std::string> columns) {
  for (std::string& column : columns) {
    right_.push_back(!column.empty() && column[0] == '>');
    columns_.push_back(right_.back() ? column.substr(1) : std::move(column));
  }
}

void Table::AddRow(std::vector<std::string> cells) {
  cells.resize(columns_.size());
  rows_.push_back(std::move(cells));
}

std::string Table::ToString(bool color) const {
  std::vector<int> widths;
  for (size_t c = 0; c < columns_.size(); ++c) {
    int width = VisibleWidth(columns_[c]);
    for (const auto& row : rows_) width = std::max(width, VisibleWidth(row[c]));
    widths.push_back(width);
  }
  const auto line_of = [&](const std::vector<std::string>& cells) {
    std::string line;
    for (size_t c = 0; c < cells.size(); ++c) {
      if (c > 0) line += "  ";
      const bool last = c + 1 == cells.size();
      line += right_[c] ? Pad(cells[c], -widths[c]) : last ? cells[c] : Pad(cells[c], widths[c]);
    }
    return line;
  };
  std::string text = Styled(line_of(columns_), Style::kDim, color) + "\n";
  for (const auto& row : rows_) text += line_of(row) + "\n";
  return text;
}

}  // namespace retort::cli
