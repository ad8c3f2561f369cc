// JSON values as lines of a file.
#pragma once

#include <string>

#include "absl/strings/string_view.h"

namespace retort {

// Escapes the characters outside ASCII that some readers take for the end of a line (U+0085, U+2028, U+2029), which
// JSON allows in a text as they are. `json` is one value, serialised.
std::string WithoutLineBreaks(absl::string_view json);

}  // namespace retort
