// Core's background duties: what happens without anybody asking for it.
#include <algorithm>

#include "common/log.h"
#include "coordinator/core.h"
#include "coordinator/ops/gang_ops.h"
#include "coordinator/ops/job_ops.h"
#include "coordinator/ops/placement_ops.h"
#include "coordinator/ops/worker_ops.h"
#include "coordinator/transitions.h"

namespace retort {
namespace {

constexpr absl::Duration kMaxSleep = absl::Seconds(1);
constexpr int kMaxPlansInARow = 16;

}  // namespace

// Ends stages whose completed work only waited for the grace of its peers.
absl::Time Core::AdvanceJobs() {
  absl::Time wake_at = absl::InfiniteFuture();
  for (auto& [job_id, job] : state_.jobs()) {
    if (HasEnded(job.record.state())) continue;
    absl::Time next = NextAdvance(state_, job);
    if (next <= clock_->Now()) {
      AdvanceJob(&state_, &job);
      next = NextAdvance(state_, job);
    }
    wake_at = std::min(wake_at, next);
  }
  return wake_at;
}

// Plans outside the lock and commits the plan when nothing has changed meanwhile; otherwise plans again.
absl::Time Core::Place() {
  for (int i = 0; i < kMaxPlansInARow; ++i) {
    Snapshot snapshot;
    absl::Time now;
    {
      absl::MutexLock lock(&mu_);
      now = clock_->Now();
      if (state_.schedule_version() == placed_version_ && now < plan_again_at_) return plan_again_at_;
      snapshot = TakeSnapshot(state_);
    }
    const Plan plan = Schedule(snapshot, now);
    absl::MutexLock lock(&mu_);
    if (!CommitPlan(&state_, plan)) continue;
    // What the plan itself changed calls for no other plan.
    placed_version_ = state_.schedule_version();
    plan_again_at_ = plan.wake_at;
    Queue();
    return plan_again_at_;
  }
  return clock_->Now();  // so much happens that there is always a reason to look again
}

absl::Time Core::RunDuties() {
  absl::Time wake_at;
  {
    absl::MutexLock lock(&mu_);
    const absl::Time now = clock_->Now();
    // This process itself did not run for a while (stopped, swapped, suspended): the silence was its own.
    if (last_duties_ != absl::InfinitePast() && now - last_duties_ > options_.lost_after / 2) {
      spdlog::warn("coordinator_was_paused seconds={:.1f}", absl::ToDoubleSeconds(now - last_duties_));
      ForgiveSilence(&state_);
    }
    last_duties_ = now;
    wake_at = std::min(CheckWorkers(&state_), CheckGangs(&state_));
    wake_at = std::min(wake_at, AdvanceJobs());
    Queue();
  }
  wake_at = std::min(wake_at, Place());
  std::vector<std::pair<std::string, uint64_t>> releases;
  {
    absl::MutexLock lock(&mu_);
    releases = state_.TakeReleases();
  }
  for (const auto& [task_id, epoch] : releases) {
    if (const absl::Status status = hooks_.release_holder(task_id, epoch); !status.ok()) {
      // The store finds fenced holders by itself when keys run short.
      spdlog::warn("release_leases_failed task_id={} epoch={} error=\"{}\"", task_id, epoch,
                   std::string(status.message()));
    }
  }
  return wake_at;
}

void Core::Loop() {
  while (true) {
    const absl::Time wake_at = RunDuties();
    absl::MutexLock lock(&mu_);
    if (stopping_) return;
    const absl::Time now = clock_->Now();
    if (state_.schedule_version() != placed_version_) continue;
    duties_.WaitWithTimeout(&mu_, std::clamp(wake_at - now, absl::ZeroDuration(), kMaxSleep));
    if (stopping_) return;
  }
}

void Core::Start() {
  thread_ = std::thread([this] { Loop(); });
}

void Core::Stop() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    news_.SignalAll();
    duties_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

}  // namespace retort
