// The program's version; every process of a cluster reports it.
#pragma once

#include "absl/strings/string_view.h"

namespace retort {

// "0.1.0", from the build's project version.
inline constexpr absl::string_view kVersion = RETORT_VERSION;

}  // namespace retort
