// Writes and uploads checkpoints beside the training.
#pragma once

#include <deque>
#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "retort/v1/task_service.pb.h"
#include "student/checkpoint.h"

namespace retort {

struct CheckpointSaverOptions {
  std::string folder;        // checkpoint-<step> folders go below it
  int save_total_limit = 0;  // of local ones; 0: all
  // Puts a folder into the artifact store and returns its id.
  std::function<absl::StatusOr<std::string>(const std::string& folder)> upload;
  // Makes a checkpoint the one to resume from.
  std::function<absl::Status(const v1::Checkpoint& checkpoint)> publish;
};

// One thread of its own. Thread-safe.
class CheckpointSaver {
 public:
  explicit CheckpointSaver(CheckpointSaverOptions options);
  // Finishes what is being written and drops what waits.
  ~CheckpointSaver();

  // Takes the snapshot; blocks while two wait already. Errors: that of an earlier checkpoint, which ends the training.
  absl::Status Save(Snapshot snapshot) ABSL_LOCKS_EXCLUDED(mu_);
  // Whether nothing waits or is being written.
  bool idle() ABSL_LOCKS_EXCLUDED(mu_);
  // Waits until all is published; returns the newest checkpoint. Errors: a checkpoint's, kDeadlineExceeded,
  // kFailedPrecondition (none was saved).
  absl::StatusOr<v1::Checkpoint> Flush(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Run() ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<v1::Checkpoint> Store(const Snapshot& snapshot);

  const CheckpointSaverOptions options_;
  absl::Mutex mu_;
  std::deque<Snapshot> waiting_ ABSL_GUARDED_BY(mu_);
  bool busy_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  v1::Checkpoint newest_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace retort
