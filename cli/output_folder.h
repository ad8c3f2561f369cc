// The folder where a job's results land: result.json, dataset/, adapter/, merged/, checkpoints/checkpoint-N/.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/rpc/artifact_client.h"
#include "retort/v1/job.pb.h"

namespace retort::cli {

// The job that `folder`/result.json is of; empty when there is no such file. Errors: kInvalidArgument (damaged).
absl::StatusOr<std::string> JobOfOutputFolder(const std::string& folder);

// kInvalidArgument when the folder already holds a result and `overwrite` is false.
absl::Status CheckOutputFolder(const std::string& folder, bool overwrite);

// Fetches what the job has made into `folder` (made when absent); each item appears whole or not at all, and replaces
// an earlier one. An older result.json is removed first and the new one, for a job that has ended, is written last:
// while there is one, it is true of all that lies beside it. Items of an earlier job that this one does not have are
// removed then, too. Returns the names of what is there now. Errors: kDataLoss (what came is not what the job made),
// kResourceExhausted (disk full), kUnavailable.
absl::StatusOr<std::vector<std::string>> FillOutputFolder(const v1::Job& job, const std::string& folder,
                                                          ArtifactClient* artifacts);

// Fetches one artifact to `target`, in place of what may stand there.
absl::Status FetchFolder(const std::string& artifact_id, const std::string& target, ArtifactClient* artifacts);

}  // namespace retort::cli
