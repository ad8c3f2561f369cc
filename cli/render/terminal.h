// What the terminal can show.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace retort::cli {

enum class Style { kPlain, kBold, kDim, kGreen, kRed, kYellow, kCyan };

// `text` in `style` when `color`, else as it is.
std::string Styled(absl::string_view text, Style style, bool color);

struct Terminal {
  bool tty = false;      // the stream is a terminal that can move its cursor
  bool color = false;    // tty, and neither NO_COLOR nor TERM=dumb
  bool unicode = false;  // the locale's character set is UTF-8
  int width = 80;        // columns
};

// Of file descriptor `fd`; the width is that of now. COLUMNS stands in for a width where there is no terminal.
Terminal DescribeTerminal(int fd);

}  // namespace retort::cli
