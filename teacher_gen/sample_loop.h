// Works a sample set off: leases samples, has the backend generate them, hands traces to the committer.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "retort/v1/job.pb.h"
#include "retort/v1/sample_service.pb.h"
#include "teacher_gen/sample_backend.h"
#include "teacher_gen/trace_committer.h"

namespace retort {

struct SampleLoopOptions {
  v1::Sampling sampling;
  absl::Duration partials_interval = absl::Seconds(2);
  absl::Duration poll_wait = absl::Milliseconds(100);
  // How long to wait before asking again for samples that others hold.
  absl::Duration retry_interval = absl::Milliseconds(250);
  // Called between steps with the keys of the set that have no trace yet (those in flight here included).
  std::function<void(int64_t remaining)> progress;
  // Asks the store for up to `limit` leases. Called from a thread of its own, one call at a time.
  std::function<absl::StatusOr<v1::AcquireSamplesResponse>(int limit)> acquire;
};

// Returns when every key of the set has a trace, whoever wrote it. Leases at most twice the backend's capacity, and
// only what it can work on at once when few samples are left, so that other replicas find some. Errors: those of the
// backend, of `acquire` and of the committer; what had been finished before is stored.
absl::Status RunSampleLoop(const SampleLoopOptions& options, SampleBackend& backend, TraceCommitter& committer);

// How many more samples to lease: `held` are leased already, `remaining` of the set have no trace (-1: not known).
int64_t SamplesToLease(int64_t held, int64_t capacity, int64_t remaining);

}  // namespace retort
