// Assertions that hold in every build. Use them for what the program itself guarantees; what comes from outside is
// validated with a Status.
#pragma once

#include "absl/strings/string_view.h"

namespace retort::internal {
[[noreturn]] void CheckFailed(absl::string_view file, int line, absl::string_view condition);
}  // namespace retort::internal

// Ends the process with file, line and condition when the condition is false.
#define RETORT_CHECK(condition)                                        \
  do {                                                                 \
    if (!(condition)) [[unlikely]]                                     \
      ::retort::internal::CheckFailed(__FILE__, __LINE__, #condition); \
  } while (false)
