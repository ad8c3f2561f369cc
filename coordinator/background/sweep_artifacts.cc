#include "coordinator/background/sweep_artifacts.h"

#include <utility>

#include "common/log.h"
#include "common/status.h"

namespace retort {
namespace {

constexpr absl::Duration kLookInterval = absl::Minutes(1);

}  // namespace

// Under the lock only ids are copied. What was let go in memory but not on disk would come back with a restart, so
// nothing is said before that is durable.
absl::StatusOr<LiveArtifacts> Core::TakeLiveArtifacts() {
  LiveArtifacts live;
  uint64_t position = 0;
  {
    absl::MutexLock lock(&mu_);
    live = CollectLiveArtifacts(state_);
    live.retired = state_.TakeRetiredArtifacts();
    position = Queue();
  }
  RETURN_IF_ERROR(log_->WaitDurable(position));
  return live;
}

ArtifactSweeper::ArtifactSweeper(Core* core, storage::ArtifactStore* store, const Clock* clock)
    : core_(core), store_(store), clock_(clock) {}

ArtifactSweeper::~ArtifactSweeper() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
}

void ArtifactSweeper::Start() {
  thread_ = std::thread([this] { Loop(); });
}

absl::Status ArtifactSweeper::SweepIfDue() {
  ASSIGN_OR_RETURN(LiveArtifacts live, core_->TakeLiveArtifacts());
  retired_.insert(live.retired.begin(), live.retired.end());
  const absl::Time now = clock_->Now();
  if (retired_.empty() && now - swept_at_ < kSweepInterval) return absl::OkStatus();
  swept_at_ = now;
  storage::SweepOptions options;
  options.live_artifacts = std::move(live.artifacts);
  options.live_blobs = std::move(live.blobs);
  ASSIGN_OR_RETURN(const storage::SweepResult swept, store_->Sweep(options, &retired_, now));
  if (swept.artifacts + swept.blobs > 0)
    spdlog::info("artifacts_swept artifacts={} blobs={} bytes={}", swept.artifacts, swept.blobs, swept.bytes);
  return absl::OkStatus();
}

void ArtifactSweeper::Loop() {
  while (true) {
    if (const absl::Status status = SweepIfDue(); !status.ok())
      spdlog::warn("artifact_sweep_failed error=\"{}\"", std::string(status.message()));
    absl::MutexLock lock(&mu_);
    if (mu_.AwaitWithTimeout(absl::Condition(&stopping_), kLookInterval)) return;
  }
}

}  // namespace retort
