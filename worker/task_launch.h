// Turns an assignment into a process.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/process.h"
#include "common/rpc/channel.h"
#include "retort/v1/worker.pb.h"
#include "worker/task_log.h"

namespace retort::worker {

// What the tasks of a daemon have in common.
struct LaunchOptions {
  std::string bin_folder;    // holds retort-teacher, retort-student, retort-curate
  std::string tasks_folder;  // absolute; each placement gets a folder below it
  std::string cache_folder;  // absolute
  std::string state_folder;  // absolute; marks the processes as this daemon's
  ChannelOptions channel;    // how the task reaches the coordinator; its files as absolute paths
};

// A started process with its output.
struct LaunchedTask {
  ChildProcess process;
  UniqueFd output;  // read end of a pipe, non-blocking: stdout and stderr
  TaskLog log;
};

// Makes the placement's folder and starts <bin>/retort-<role> in it. Call from a thread that lives as long as the
// daemon: the kernel kills the process when that thread ends. Errors: kInvalidArgument (a name that is none), kNotFound
// (no such program), and what the file system says.
absl::StatusOr<LaunchedTask> LaunchTask(const LaunchOptions& options, const v1::Assignment& assignment);

// The command line and environment, apart for tests. Pure but for the environment it starts from.
SpawnOptions TaskSpawnOptions(const LaunchOptions& options, const v1::Assignment& assignment,
                              const std::string& work_folder);

}  // namespace retort::worker
