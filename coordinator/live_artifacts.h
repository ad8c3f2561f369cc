// What the coordinator's state names in the artifact store.
#pragma once

#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "coordinator/state.h"

namespace retort {

struct LiveArtifacts {
  absl::flat_hash_set<std::string> artifacts;  // ids
  absl::flat_hash_set<std::string> blobs;      // by SHA-256
  std::vector<std::string> retired;            // artifacts that a job named before and no longer names
};

// Everything that the jobs' specs, results, checkpoints and tasks name; `retired` is left empty.
LiveArtifacts CollectLiveArtifacts(const State& state);

}  // namespace retort
