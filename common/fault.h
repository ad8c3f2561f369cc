// Deliberate failures at named points, for tests that must hit a moment exactly.
//
// RETORT_FAULT="point:n[:action][,point:n[:action]...]" arms the n-th (1 is the first) passage of each named point in
// every process that inherits it. Actions: "kill" (default: SIGKILL, as kill -9 does), "exit" (exit code 70, nothing
// flushed), or a number of milliseconds to sleep. A word that does not parse is reported on stderr and ends the
// process: a fault test that arms nothing would pass for the wrong reason. Compiled in always; where nothing is armed a
// point costs one relaxed load.
#pragma once

#include <atomic>

#include "absl/strings/string_view.h"

namespace retort::internal {
extern std::atomic<bool> g_faults_armed;
void PassFaultPoint(absl::string_view point);
}  // namespace retort::internal

#define MAYBE_FAULT(point)                                                               \
  do {                                                                                   \
    if (::retort::internal::g_faults_armed.load(std::memory_order_relaxed)) [[unlikely]] \
      ::retort::internal::PassFaultPoint(point);                                         \
  } while (false)
