// The process that keeps a coordinator and a worker running on this machine.
//
// It starts both, on loopback, and starts either again when it dies, the coordinator on the port it had, so that
// workers and tasks find it again. The kernel kills both when the supervisor dies: what is left of a killed cluster is
// its state folder, and the next `distctl local up` goes on from it.
#pragma once

#include <string>

namespace retort::cli {

struct SupervisorOptions {
  std::string state_dir;  // absolute
  std::string bin_dir;    // holds retort-coordinator and retort-worker
  int port = 0;           // 0: the one used before if it is free, else any
  int cpu_slots = 0;      // 0: the worker's default
};

// Runs until SIGTERM or SIGINT. Returns the exit code; what it has to say goes to stderr. Call in a process of its own
// with one thread.
int RunSupervisor(const SupervisorOptions& options);

}  // namespace retort::cli
