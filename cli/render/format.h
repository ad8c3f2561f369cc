// Numbers as people read them, tables, sparklines. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace retort::cli {

// "12,800".
std::string FormatCount(int64_t value);
// "0.4s", "12s", "3m 20s", "2h 05m", "4d 03h".
std::string FormatSeconds(double seconds);
// "512 B", "1.4 KB", "2.1 GB" (powers of 1,000).
std::string FormatBytes(int64_t bytes);
// Three significant digits: "0.0123", "4.56", "123", "4560".
std::string FormatRate(double per_second);
// "67.5%", or "-" when absent (NaN).
std::string FormatPercent(double share);

// The values as one line of blocks, at most `width` long (means of neighbours when there are more); ASCII digits 0-9
// instead when `unicode` is false. Empty for fewer than two values.
std::string Sparkline(absl::Span<const double> values, int width, bool unicode);

// Columns the text takes on a terminal: one a code point, escape sequences none.
int VisibleWidth(absl::string_view text);
// Cuts to `width` columns ("..." or an ellipsis at the end), keeping escape sequences whole.
std::string Truncate(absl::string_view text, int width, bool unicode);
// `text` padded with spaces to `width` columns; negative: on the left.
std::string Pad(absl::string_view text, int width);

// Rows of cells under a header, columns two spaces apart. Columns whose name begins with ">" are right-aligned.
class Table {
 public:
  explicit Table(std::vector<std::string> columns);
  void AddRow(std::vector<std::string> cells);
  bool empty() const { return rows_.empty(); }
  // Header dimmed when `color`.
  std::string ToString(bool color) const;

 private:
  std::vector<std::string> columns_;
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace retort::cli
