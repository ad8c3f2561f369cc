// Ports of this machine's loopback interface.
#pragma once

#include "absl/status/status.h"

namespace retort::cli {

// Whether a server could listen on 127.0.0.1:`port`. Errors: kAlreadyExists (used by another process),
// kPermissionDenied (a port below 1024), kInternal.
absl::Status CheckPortIsFree(int port);

}  // namespace retort::cli
