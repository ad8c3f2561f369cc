#include "student/checkpoint_saver.h"

#include <spdlog/spdlog.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/fault.h"
#include "common/status.h"

namespace retort {
namespace {

constexpr size_t kMaxWaiting = 2;

// A folder that cannot be removed costs disk, not the training.
void KeepNewest(size_t limit, std::deque<std::string>* folders) {
  for (; folders->size() > limit; folders->pop_front()) {
    std::error_code error;
    std::filesystem::remove_all(folders->front(), error);
    if (error) spdlog::warn("checkpoint_not_removed folder={} error=\"{}\"", folders->front(), error.message());
  }
}

}  // namespace

CheckpointSaver::CheckpointSaver(CheckpointSaverOptions options) : options_(std::move(options)) {
  thread_ = std::thread([this] { Run(); });
}

CheckpointSaver::~CheckpointSaver() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

absl::Status CheckpointSaver::Save(Snapshot snapshot, bool rolling) {
  absl::MutexLock lock(&mu_);
  const auto has_room = [this] {
    mu_.AssertHeld();
    return waiting_.size() < kMaxWaiting || !status_.ok();
  };
  mu_.Await(absl::Condition(&has_room));
  RETURN_IF_ERROR(status_);
  waiting_.push_back({std::move(snapshot), rolling});
  return absl::OkStatus();
}

bool CheckpointSaver::idle() {
  absl::MutexLock lock(&mu_);
  return waiting_.empty() && !busy_;
}

absl::StatusOr<v1::Checkpoint> CheckpointSaver::Flush(absl::Duration timeout) {
  absl::MutexLock lock(&mu_);
  const auto done = [this] {
    mu_.AssertHeld();
    return (waiting_.empty() && !busy_) || !status_.ok();
  };
  if (!mu_.AwaitWithTimeout(absl::Condition(&done), timeout)) {
    return absl::DeadlineExceededError("a checkpoint is still being uploaded");
  }
  RETURN_IF_ERROR(status_);
  if (newest_.artifact_id().empty()) return absl::FailedPreconditionError("no checkpoint was saved");
  return newest_;
}

absl::StatusOr<v1::Checkpoint> CheckpointSaver::Store(const Waiting& waiting) {
  const Snapshot& snapshot = waiting.snapshot;
  const absl::Time start = absl::Now();
  ASSIGN_OR_RETURN(const std::string folder, WriteCheckpoint(snapshot, options_.folder));
  MAYBE_FAULT("student.checkpoint_written");
  v1::Checkpoint checkpoint;
  checkpoint.set_step(snapshot.step);
  checkpoint.set_rolling(waiting.rolling);
  for (const v1::LossPoint& point : snapshot.history) *checkpoint.add_losses() = point;
  ASSIGN_OR_RETURN(*checkpoint.mutable_artifact_id(), options_.upload(folder));
  MAYBE_FAULT("student.checkpoint_uploaded");
  RETURN_IF_ERROR(options_.publish(checkpoint));
  (waiting.rolling ? rolling_folders_ : other_folders_).push_back(folder);
  KeepNewest(kRollingKept, &rolling_folders_);
  if (options_.save_total_limit > 0) KeepNewest(static_cast<size_t>(options_.save_total_limit), &other_folders_);
  spdlog::info("checkpoint_saved step={} artifact_id={} rolling={} seconds={:.2f}", snapshot.step,
               checkpoint.artifact_id(), waiting.rolling, absl::ToDoubleSeconds(absl::Now() - start));
  return checkpoint;
}

void CheckpointSaver::Run() {
  while (true) {
    Waiting next;
    {
      absl::MutexLock lock(&mu_);
      const auto has_work = [this] {
        mu_.AssertHeld();
        return !waiting_.empty() || stopping_;
      };
      mu_.Await(absl::Condition(&has_work));
      if (stopping_) return;
      next = std::move(waiting_.front());
      waiting_.pop_front();
      busy_ = true;
    }
    const absl::StatusOr<v1::Checkpoint> stored = Store(next);
    absl::MutexLock lock(&mu_);
    busy_ = false;
    if (stored.ok()) {
      newest_ = *stored;
    } else if (status_.ok()) {
      status_ = WithContext(stored.status(), absl::StrCat("checkpoint of step ", next.snapshot.step));
      spdlog::error("checkpoint_failed step={} error=\"{}\"", next.snapshot.step, stored.status().ToString());
    }
  }
}

}  // namespace retort
