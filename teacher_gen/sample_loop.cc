#include "teacher_gen/sample_loop.h"

#include <algorithm>
#include <chrono>
#include <future>
#include <optional>
#include <utility>

#include "absl/time/clock.h"
#include "common/status.h"

namespace retort {

int64_t SamplesToLease(int64_t held, int64_t capacity, int64_t remaining) {
  const bool plenty = remaining < 0 || remaining > 4 * capacity;
  const int64_t wanted = plenty ? 2 * capacity : capacity;
  // Not for every sample that ends: a quarter of the capacity at a time, unless the backend would run dry.
  if (held >= capacity && wanted - held < std::max<int64_t>(1, capacity / 4)) return 0;
  return std::max<int64_t>(0, wanted - held);
}

namespace {

absl::Status Generate(const SampleLoopOptions& options, SampleBackend& backend, TraceCommitter& committer) {
  std::future<absl::StatusOr<v1::AcquireSamplesResponse>> asking;
  int64_t remaining = -1;
  int64_t stored_when_asked = 0;
  absl::Time ask_after = absl::InfinitePast();
  absl::Time partials_at = absl::Now() + options.partials_interval;
  for (;;) {
    if (!asking.valid() && absl::Now() >= ask_after) {
      const int64_t limit = SamplesToLease(backend.in_flight(), backend.capacity(), remaining);
      if (limit > 0) {
        // The last answer may count traces that wait here; an idle backend asks when all of its own are stored.
        if (backend.in_flight() == 0) RETURN_IF_ERROR(committer.Flush());
        stored_when_asked = committer.stored();
        asking = std::async(std::launch::async, options.acquire, static_cast<int>(limit));
      }
    }
    const bool idle = backend.in_flight() == 0;
    if (asking.valid() && (idle || asking.wait_for(std::chrono::seconds(0)) == std::future_status::ready)) {
      ASSIGN_OR_RETURN(v1::AcquireSamplesResponse answer, asking.get());
      remaining = answer.remaining();
      for (auto& sample : *answer.mutable_samples()) backend.Start(std::move(sample), options.sampling);
      if (answer.samples_size() == 0) {
        if (remaining == 0 && backend.in_flight() == 0) break;
        ask_after = absl::Now() + options.retry_interval;
      } else {
        ask_after = absl::InfinitePast();
      }
    }
    if (backend.in_flight() == 0) {
      absl::SleepFor(std::clamp(ask_after - absl::Now(), absl::ZeroDuration(), options.retry_interval));
    } else {
      ASSIGN_OR_RETURN(std::vector<FinishedSample> finished, backend.Poll(options.poll_wait));
      for (FinishedSample& sample : finished) {
        v1::CommitTracesRequest::Item item;
        *item.mutable_trace() = std::move(sample.trace);
        item.set_lease_epoch(sample.lease_epoch);
        RETURN_IF_ERROR(committer.Add(std::move(item)));
      }
      if (absl::Now() >= partials_at) {
        committer.SavePartials(backend.Partials());
        partials_at = absl::Now() + options.partials_interval;
      }
    }
    if (options.progress && remaining >= 0)
      options.progress(std::max<int64_t>(0, remaining - (committer.stored() - stored_when_asked)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RunSampleLoop(const SampleLoopOptions& options, SampleBackend& backend, TraceCommitter& committer) {
  const absl::Status generated = Generate(options, backend, committer);
  // Also after a failure: what is finished has been paid for.
  const absl::Status stored = committer.Flush();
  if (!generated.ok()) return generated;
  RETURN_IF_ERROR(stored);
  if (options.progress) options.progress(0);
  return absl::OkStatus();
}

}  // namespace retort
