// The command line of retort-coordinator.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/rpc/server_security.h"
#include "coordinator/state.h"

namespace retort {

struct CoordinatorFlags {
  std::string state_dir;     // absolute or relative; made when absent
  std::string address_file;  // where the bound host:port is written; empty: nowhere
  ServerOptions server;
  CoordinatorOptions options;
  bool show_help = false;
  std::string help;
};

// Errors: kInvalidArgument naming the flag. `home` is the user's home folder, under which the default state folder
// lies.
absl::StatusOr<CoordinatorFlags> ParseCoordinatorFlags(int argc, const char* const* argv, const std::string& home);

}  // namespace retort
