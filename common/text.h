// Text that comes from outside and goes into messages.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace retort {

// At most the first `max_bytes` of `text` as valid UTF-8 (what a protobuf `string` must be): bytes that are none become
// "?", and a character cut by the limit is left out.
std::string ValidUtf8(absl::string_view text, size_t max_bytes);

}  // namespace retort
