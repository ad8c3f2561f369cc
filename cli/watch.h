// Following a job until it ends.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "cli/client.h"
#include "retort/v1/job.pb.h"

namespace retort::cli {

// Shows the job's progress on stderr until it has ended: redrawn in place on a terminal, plain lines elsewhere.
// Survives restarts of the coordinator (up to 60 s without an answer). Returns the job as it ended. Errors: kCancelled
// (Ctrl-C; the job goes on), kUnavailable (the coordinator stayed away; the job is safe in its store), kNotFound.
absl::StatusOr<v1::Job> WatchUntilEnd(const Client& client, const std::string& job_id);

// Ctrl-C and SIGTERM set a flag from then on, instead of ending the process.
void CatchInterrupts();
bool Interrupted();

}  // namespace retort::cli
