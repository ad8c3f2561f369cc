// `distctl local up` and `down`: a coordinator and a worker on this machine, kept running by a supervisor.
#pragma once

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/local/local_state.h"

namespace retort::cli {

struct LocalUpOptions {
  std::string state_dir;  // absolute; made when absent
  int port = 0;           // 0: the one used before if it is free, else any
  int cpu_slots = 0;      // 0: the worker's default
  absl::Duration timeout = absl::Seconds(15);
};

struct LocalCluster {
  LocalState processes;
  std::string address;  // of the coordinator
  std::string worker_id;
  int cpu_slots = 0;
  int gpus = 0;
  bool started = false;  // false: it ran already
};

// Makes sure that the cluster runs, and returns when the coordinator answers and its worker is ready. The daemons keep
// none of this process's descriptors. Errors: kAlreadyExists (the port is used), kFailedPrecondition (it runs on
// another port; a daemon does not start, with the end of its log), kDeadlineExceeded (with the end of the logs),
// kNotFound (the programs are not beside this one), and what the file system says.
absl::StatusOr<LocalCluster> LocalUp(const LocalUpOptions& options);

// Stops worker, coordinator and supervisor. True: it ran. Errors: kDeadlineExceeded (the supervisor did not end and was
// killed, and all with it).
absl::StatusOr<bool> LocalDown(const std::string& state_dir);

}  // namespace retort::cli
