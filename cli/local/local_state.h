// Files of the local cluster in its state folder DIR, read by every distctl and written by the supervisor.
//
//   DIR/local.json        {"supervisor": {"pid"}, "coordinator": {"pid", "port"}, "worker": {"pid", "port": 0}}; a pid
//   of 0 means
//                         that the process is down just now
//   DIR/supervisor.lock   locked as long as a supervisor lives; holds its pid
//   DIR/*.log             what supervisor, coordinator and worker wrote
#pragma once

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/file.h"

namespace retort::cli {

struct LocalState {
  pid_t supervisor_pid = 0;
  pid_t coordinator_pid = 0;
  int coordinator_port = 0;
  pid_t worker_pid = 0;
};

std::string LocalStatePath(const std::string& state_dir);
std::string SupervisorLogPath(const std::string& state_dir);

// Errors: kNotFound (no file), kInvalidArgument (damaged).
absl::StatusOr<LocalState> ReadLocalState(const std::string& state_dir);
absl::Status WriteLocalState(const std::string& state_dir, const LocalState& state);

// Takes the supervisor's lock and writes this process's id into it. Released when the descriptor is closed, also by the
// process's death, so a lock that is held means a supervisor that lives, whatever process ids were used again since.
// Errors: kAlreadyExists (held).
absl::StatusOr<UniqueFd> TakeSupervisorLock(const std::string& state_dir);

// The process id of the living supervisor; 0: there is none.
absl::StatusOr<pid_t> LivingSupervisor(const std::string& state_dir);

// The last `lines` lines of a log, at most 8 KiB of them; empty when it cannot be read.
std::string LastLines(const std::string& path, int lines);

}  // namespace retort::cli
