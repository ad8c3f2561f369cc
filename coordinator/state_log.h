// The durable records under the coordinator's state, in a RocksDB of their own.
//
// Changes are queued in order and written by one thread, which takes all that wait, writes them as one batch and fsyncs
// once. Whoever tells the world about a change waits for it first (WaitDurable).
//
// When the disk refuses a write, the batch is kept and tried again every second: nothing after it becomes durable,
// waiters get the error, and work goes on once there is space. The log's recovery mode (kTolerateCorruptedTailRecords)
// accepts only a last record that a crash cut short, which nobody was told about; any other damage is an error at Open,
// never a silent loss.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace rocksdb {
class DB;
class Env;
}  // namespace rocksdb

namespace retort {

struct RecordChange {
  std::string key;
  std::string value;
  bool is_delete = false;
};

class StateLog {
 public:
  // Opens or makes the folder. `env` null: the machine's; tests put a failing disk there.
  // Errors: kUnavailable (another process has it open), kDataLoss (damaged), kPermissionDenied, kResourceExhausted,
  // kInternal.
  static absl::StatusOr<std::unique_ptr<StateLog>> Open(const std::string& path, rocksdb::Env* env = nullptr);
  // Writes what is queued, unless the disk refuses it.
  ~StateLog();

  // Calls `record` with every record in order of the keys. Call before the first Append.
  absl::Status ForEach(const std::function<absl::Status(absl::string_view key, absl::string_view value)>& record) const;

  // Queues changes that become durable together. Returns their position. Never blocks.
  uint64_t Append(std::vector<RecordChange> changes);

  // Waits until everything up to `position` is on disk. Errors: kUnavailable (the disk refuses, or `timeout` passed;
  // says why).
  absl::Status WaitDurable(uint64_t position, absl::Duration timeout = absl::Seconds(15));

  uint64_t last_position() const;

 private:
  explicit StateLog(rocksdb::DB* db);
  void WriteLoop();

  const std::unique_ptr<rocksdb::DB> db_;
  mutable absl::Mutex mu_;
  absl::CondVar work_;
  absl::CondVar durable_changed_;
  std::vector<RecordChange> queue_ ABSL_GUARDED_BY(mu_);
  uint64_t last_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t durable_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);  // of the write that is being tried again
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread writer_;
};

}  // namespace retort
