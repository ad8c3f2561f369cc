// Finds processes by a mark in their environment.
//
// Every task process starts with RETORT_TASK_OF=<the daemon's state folder>, which whatever it starts inherits. The
// kernel kills a task itself when its daemon dies; what a task had started is found by this mark, also by the next
// daemon.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace retort::worker {

inline constexpr char kTaskOfVariable[] = "RETORT_TASK_OF";
// "<task_id>.<epoch>" of the task that a process belongs to.
inline constexpr char kTaskVariable[] = "RETORT_TASK";

// Sends SIGKILL to all processes but this one whose starting environment holds every one of `words` ("NAME=value"),
// again until none is left or `timeout` is over. Returns how many different processes were found.
int KillMarkedProcesses(const std::vector<std::string>& words, absl::Duration timeout);

}  // namespace retort::worker
