#include "cli/render/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace retort::cli {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

bool LocaleIsUtf8() {
  std::string locale;
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    locale = Environment(name);
    if (!locale.empty()) break;
  }
  locale = absl::AsciiStrToLower(locale);
  return absl::StrContains(locale, "utf-8") || absl::StrContains(locale, "utf8");
}

}  // namespace

std::string Styled(absl::string_view text, Style style, bool color) {
  if (!color || style == Style::kPlain || text.empty()) return std::string(text);
  const char* code = "";
  switch (style) {
    case Style::kPlain:
      break;
    case Style::kBold:
      code = "1";
      break;
    case Style::kDim:
      code = "2";
      break;
    case Style::kGreen:
      code = "32";
      break;
    case Style::kRed:
      code = "31";
      break;
    case Style::kYellow:
      code = "33";
      break;
    case Style::kCyan:
      code = "36";
      break;
  }
  return absl::StrCat("\x1b[", code, "m", text, "\x1b[0m");
}

Terminal DescribeTerminal(int fd) {
  Terminal terminal;
  terminal.tty = isatty(fd) == 1 && Environment("TERM") != "dumb";
  terminal.color = terminal.tty && Environment("NO_COLOR").empty();
  terminal.unicode = LocaleIsUtf8();
  winsize size{};
  int columns = 0;
  if (terminal.tty && ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    terminal.width = size.ws_col;
  } else if (absl::SimpleAtoi(Environment("COLUMNS"), &columns) && columns > 0) {
    terminal.width = columns;
  }
  return terminal;
}

}  // namespace retort::cli
