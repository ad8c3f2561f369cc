// Starting other programs and keeping hold of them.
//
// Safe in a multi-threaded process: between clone and exec the child makes system calls only, and no fork handler runs.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/file.h"

namespace retort {

struct SpawnOptions {
  std::vector<std::string> argv;         // argv[0] is the path of the program; no PATH search
  std::vector<std::string> environment;  // "NAME=value", the child's whole environment
  std::string working_folder;            // empty: the caller's
  // Descriptors of the caller that become the child's; -1: /dev/null. The child gets no other.
  int stdin_fd = -1;
  int stdout_fd = -1;
  int stderr_fd = -1;
  bool new_session = true;  // its own session and process group, so that KillProcessGroup reaches what it starts
  // The kernel kills the child with SIGKILL when the *thread* that spawned it ends (PR_SET_PDEATHSIG): spawn from a
  // thread that lives as long as the process.
  bool die_with_thread = false;
};

struct ChildProcess {
  pid_t pid = 0;
  UniqueFd pidfd;  // readable when the process has ended; invalid where the kernel has no pidfds
};

// Starts a program. Errors: kNotFound (no such program or folder), kPermissionDenied, kInternal, each naming what
// failed. No process is left behind on an error.
absl::StatusOr<ChildProcess> SpawnProcess(const SpawnOptions& options);

// How a child ended.
struct ProcessExit {
  int exit_code = 0;  // when signal is 0
  int signal = 0;
  std::string ToString() const;  // "exit code 1", "signal 9 (Killed)"
};

// Waits until the child `pid` has ended and reaps it. Errors: kDeadlineExceeded (still running), kNotFound (no such
// child).
absl::StatusOr<ProcessExit> WaitProcess(pid_t pid, absl::Duration timeout);

// Sends `signal` to every process of the group that `pid` leads; that nobody is left is fine.
void KillProcessGroup(pid_t pid, int signal);

// Names a process for good: ids are used again after a while, the pair of id and start time is not.
struct ProcessIdentity {
  pid_t pid = 0;
  uint64_t start_ticks = 0;  // since boot, from /proc/<pid>/stat
};

// Errors: kNotFound (no such process, or it has ended and waits to be reaped).
absl::StatusOr<ProcessIdentity> IdentifyProcess(pid_t pid);
// Whether that very process still runs.
bool IsAlive(const ProcessIdentity& process);

// This process's environment as "NAME=value" words, with `overrides` ("NAME=value") replacing variables of the same
// name.
std::vector<std::string> EnvironmentWith(const std::vector<std::string>& overrides);

// The folder of this program's own file.
absl::StatusOr<std::string> ProgramFolder();

}  // namespace retort
