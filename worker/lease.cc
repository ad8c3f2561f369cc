#include "worker/lease.h"

#include <time.h>

namespace retort::worker {

absl::Time BootTime() {
  timespec now = {};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return absl::TimeFromTimespec(now);
}

}  // namespace retort::worker
