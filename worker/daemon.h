// The worker daemon: one per machine.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "common/rpc/channel.h"

namespace retort::worker {

struct DaemonOptions {
  std::string state_dir;
  ChannelOptions channel;
  int cpu_slots = 0;       // 0: max(4, cores)
  std::string bin_folder;  // holds the task programs
};

// Runs until SIGTERM or SIGINT, then stops its tasks, reports their ends and returns OK. Call once, in a process that
// has no other thread yet and no children. Errors: kAlreadyExists (another daemon uses the folder), kInvalidArgument,
// kNotFound, kPermissionDenied (files), kUnauthenticated and kAborted (the coordinator refuses this worker).
absl::Status RunDaemon(const DaemonOptions& options);

}  // namespace retort::worker
