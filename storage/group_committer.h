// The one thread that changes the database.
//
// Callers hand in small functions. The thread takes all that wait (up to kMaxBatchRequests and about kMaxBatchBytes),
// runs them in order, each adding its records to one batch, writes the batch, fsyncs once and only then answers them
// all. While it syncs, the next batch gathers. Functions run one at a time, so the state they share needs no lock, and
// each sees what those before it in the batch wrote (Reader).
#pragma once

#include <rocksdb/utilities/write_batch_with_index.h>

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "storage/database.h"

namespace retort::storage {

// What a function may do: read the database as the batch so far leaves it, and add to the batch.
class Transaction {
 public:
  explicit Transaction(Database* database) : database_(database), batch_(rocksdb::BytewiseComparator(), 0, true) {}

  void Put(rocksdb::ColumnFamilyHandle* table, absl::string_view key, absl::string_view value);
  void Delete(rocksdb::ColumnFamilyHandle* table, absl::string_view key);
  // kNotFound when there is none.
  absl::StatusOr<std::string> Get(rocksdb::ColumnFamilyHandle* table, absl::string_view key);
  // Valid until the next Put or Delete.
  std::unique_ptr<rocksdb::Iterator> Iterate(rocksdb::ColumnFamilyHandle* table);
  // For a function that fails after it has changed something in memory: the whole batch is dropped, as after a failed
  // write.
  void Abandon() { abandoned_ = true; }

 private:
  friend class GroupCommitter;
  Database* const database_;
  rocksdb::WriteBatchWithIndex batch_;
  bool abandoned_ = false;
};

class GroupCommitter {
 public:
  static constexpr size_t kMaxBatchRequests = 1024;
  static constexpr size_t kMaxBatchBytes = 32 << 20;
  static constexpr size_t kMaxQueuedBytes = 256 << 20;

  // `on_failed_write` runs on the committer thread after a batch could not be written or was abandoned: whatever its
  // functions changed in memory must be read anew.
  GroupCommitter(Database* database, std::function<void()> on_failed_write);
  // Runs what waits, then stops.
  ~GroupCommitter();

  // Runs `apply` and returns when what it wrote is on disk. If `apply` gives an error it must have changed nothing (or
  // call Abandon), and the error is returned (after the batch it fell into, so that its grounds are durable too).
  // `size_bytes` is about what it holds in memory. Errors besides those of `apply`: kUnavailable (the queue stayed full
  // for `kQueueTimeout`, or another request of the batch abandoned it: try again), kResourceExhausted (disk full),
  // kInternal (write failed).
  absl::Status Run(size_t size_bytes, absl::FunctionRef<absl::Status(Transaction& transaction)> apply);

  static constexpr absl::Duration kQueueTimeout = absl::Seconds(15);

 private:
  struct Request {
    absl::FunctionRef<absl::Status(Transaction&)> apply;
    size_t size_bytes;
    absl::Status status;
    bool done = false;
  };

  void Loop();
  void Process(const std::vector<Request*>& requests);
  absl::Status Write(rocksdb::WriteBatchWithIndex& batch);
  bool HasRoom() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return queued_bytes_ < kMaxQueuedBytes; }
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_ || !queue_.empty(); }

  Database* const database_;
  const std::function<void()> on_failed_write_;
  bool last_write_failed_ = false;  // committer thread only

  absl::Mutex mu_;
  std::deque<Request*> queue_ ABSL_GUARDED_BY(mu_);
  size_t queued_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace retort::storage
