// When a daemon that died is started again.
#pragma once

#include <algorithm>

#include "absl/time/time.h"

namespace retort::cli {

// At once the first time, later and later while it dies soon after its start, at once again when it had lived for a
// while. Times come from one clock. Not thread-safe.
class RestartPolicy {
 public:
  void Started(absl::Time now) { started_at_ = now; }

  // The daemon ended; returns when to start it again.
  absl::Time Ended(absl::Time now) {
    last_life_was_long_ = now - started_at_ >= kLongLife;
    if (last_life_was_long_) quick_deaths_ = 0;
    const absl::Duration delay =
        quick_deaths_ < kFreeRestarts
            ? absl::ZeroDuration()
            : std::min(kMaxDelay, kFirstDelay * (1 << std::min(quick_deaths_ - kFreeRestarts, 16)));
    ++quick_deaths_;
    return now + delay;
  }

  // Deaths in a row, each but the first less than ten seconds after the start.
  int quick_deaths() const { return quick_deaths_; }
  bool last_life_was_long() const { return last_life_was_long_; }

 private:
  static constexpr absl::Duration kLongLife = absl::Seconds(10);
  static constexpr absl::Duration kFirstDelay = absl::Milliseconds(100);
  static constexpr absl::Duration kMaxDelay = absl::Seconds(5);
  static constexpr int kFreeRestarts = 3;

  absl::Time started_at_ = absl::InfinitePast();
  int quick_deaths_ = 0;
  bool last_life_was_long_ = false;
};

}  // namespace retort::cli
