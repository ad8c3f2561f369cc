// Whether the coordinator still counts on this worker's tasks.
#pragma once

#include "absl/time/time.h"

namespace retort::worker {

// Time since boot, sleep of the machine included: a laptop that wakes up must notice that its lease is over.
absl::Time BootTime();

// The lease runs from when the last answered message was *sent*, so it ends here before it ends at the coordinator.
// Times come from one clock that never goes back. Not thread-safe.
class Lease {
 public:
  void set_ttl(absl::Duration ttl) { ttl_ = ttl; }
  // A message that was sent at `sent_at` was answered.
  void Renew(absl::Time sent_at) {
    if (sent_at > renewed_at_) renewed_at_ = sent_at;
    lost_ = false;
  }
  // True once for every loss: the moment to kill all tasks.
  bool IsLostNow(absl::Time now) {
    if (lost_ || renewed_at_ == absl::InfinitePast() || now - renewed_at_ < ttl_) return false;
    lost_ = true;
    return true;
  }

 private:
  absl::Duration ttl_ = absl::InfiniteDuration();  // until the coordinator says
  absl::Time renewed_at_ = absl::InfinitePast();   // never
  bool lost_ = false;
};

}  // namespace retort::worker
