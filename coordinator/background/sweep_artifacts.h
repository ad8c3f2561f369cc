// The background duty that frees the disk of what no job names any more.
#pragma once

#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "coordinator/core.h"
#include "storage/artifact_store.h"

namespace retort {

// Sweeps the artifact store after the start and every kSweepInterval; within a minute where a job has let a checkpoint
// go. A thread of its own: removing large files takes time that leases do not have. Owns nothing; all must outlive it.
class ArtifactSweeper {
 public:
  static constexpr absl::Duration kSweepInterval = absl::Minutes(10);

  ArtifactSweeper(Core* core, storage::ArtifactStore* store, const Clock* clock);
  ~ArtifactSweeper();

  void Start();
  // The duty once: looks what is live and sweeps if it is time, or something was let go. For tests; the thread of Start
  // does the same. Errors: kUnavailable (the state is not durable just now), those of ArtifactStore::Sweep.
  absl::Status SweepIfDue();

 private:
  void Loop();

  Core* const core_;
  storage::ArtifactStore* const store_;
  const Clock* const clock_;
  absl::flat_hash_set<std::string> retired_;  // let go, but still too young at the last sweep
  absl::Time swept_at_ = absl::InfinitePast();

  absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace retort
