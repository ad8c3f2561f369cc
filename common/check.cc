#include "common/check.h"

#include <cstdio>
#include <cstdlib>

namespace retort::internal {

void CheckFailed(absl::string_view file, int line, absl::string_view condition) {
  std::fprintf(stderr, "%.*s:%d: check failed: %.*s\n", static_cast<int>(file.size()), file.data(), line,
               static_cast<int>(condition.size()), condition.data());
  std::abort();
}

}  // namespace retort::internal
