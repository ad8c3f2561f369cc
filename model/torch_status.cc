#include "model/torch_status.h"

#include <c10/util/Exception.h>

#include <new>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace retort {

absl::Status TorchErrorToStatus(absl::string_view what, const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  absl::string_view message = torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
  message = message.substr(0, message.find('\n'));
  const std::string text = absl::StrCat(what, ": ", message);
  // The CPU allocator has no exception type of its own.
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error) != nullptr ||
      dynamic_cast<const std::bad_alloc*>(&error) != nullptr ||
      absl::StrContains(message, "DefaultCPUAllocator: can't allocate memory") ||
      absl::StrContains(message, "out of memory")) {
    return absl::ResourceExhaustedError(text);
  }
  return absl::InternalError(text);
}

}  // namespace retort
