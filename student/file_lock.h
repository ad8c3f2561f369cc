// A lock between the processes of one machine.
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/file.h"

namespace retort {

// Holds a lock on a file, which is made where it is not there, until the result goes out of scope or its process dies.
// Waits for whoever holds it, however long that works: `waiting`, which may be empty, is called at once and then every
// two seconds. Errors: those of opening and locking.
absl::StatusOr<UniqueFd> LockFile(const std::string& path, const std::function<void(absl::Duration waited)>& waiting);

}  // namespace retort
