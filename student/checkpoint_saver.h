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
  int save_total_limit = 0;  // of local ones that are not rolling; 0: all
  // Puts a folder into the artifact store and returns its id.
  std::function<absl::StatusOr<std::string>(const std::string& folder)> upload;
  // Makes a checkpoint the one to resume from.
  std::function<absl::Status(const v1::Checkpoint& checkpoint)> publish;
};

// One thread of its own. Thread-safe.
class CheckpointSaver {
 public:
  // Local rolling checkpoints that are kept, as the coordinator keeps them.
  static constexpr size_t kRollingKept = 2;

  explicit CheckpointSaver(CheckpointSaverOptions options);
  // Finishes what is being written and drops what waits.
  ~CheckpointSaver();

  // Takes the snapshot; blocks while two wait already. `rolling`: made only to resume from, not because the user asked
  // for it (v1::Checkpoint.rolling). Errors: that of an earlier checkpoint, which ends the training.
  absl::Status Save(Snapshot snapshot, bool rolling) ABSL_LOCKS_EXCLUDED(mu_);
  // Whether nothing waits or is being written.
  bool idle() ABSL_LOCKS_EXCLUDED(mu_);
  // Waits until all is published; returns the newest checkpoint. Errors: a checkpoint's, kDeadlineExceeded,
  // kFailedPrecondition (none was saved).
  absl::StatusOr<v1::Checkpoint> Flush(absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Waiting {
    Snapshot snapshot;
    bool rolling = false;
  };

  void Run() ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<v1::Checkpoint> Store(const Waiting& waiting);

  const CheckpointSaverOptions options_;
  // Local folders, oldest first. On the saver's thread.
  std::deque<std::string> rolling_folders_;
  std::deque<std::string> other_folders_;

  absl::Mutex mu_;
  std::deque<Waiting> waiting_ ABSL_GUARDED_BY(mu_);
  bool busy_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  v1::Checkpoint newest_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace retort
