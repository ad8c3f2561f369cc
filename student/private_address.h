// Where a rank listens for tensor traffic.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace retort {

// Names the interface ("eth1") or numeric address for tensor traffic; read from the environment of the worker daemon.
inline constexpr char kCommInterfaceVariable[] = "RETORT_COMM_INTERFACE";

// The numeric address: that of RETORT_COMM_INTERFACE if it is set; else loopback when the coordinator is on loopback;
// else the one from which this machine reaches the coordinator. Errors: kInvalidArgument (no such interface),
// kUnavailable (the coordinator's name does not resolve, no route).
absl::StatusOr<std::string> PrivateAddress(const std::string& coordinator);

}  // namespace retort
