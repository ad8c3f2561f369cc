// Memory of a task, for limits where no cgroup can be made.
#pragma once

#include <sys/types.h>

#include <cstdint>

namespace retort::worker {

// Resident bytes of all processes in the group that `leader` leads, pages shared among them counted each time.
int64_t ResidentBytesOfGroup(pid_t leader);

}  // namespace retort::worker
