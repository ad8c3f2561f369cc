#include "storage/group_committer.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "common/status.h"

namespace retort::storage {

void Transaction::Put(rocksdb::ColumnFamilyHandle* table, absl::string_view key, absl::string_view value) {
  batch_.Put(table, ToSlice(key), ToSlice(value));
}

void Transaction::Delete(rocksdb::ColumnFamilyHandle* table, absl::string_view key) {
  batch_.Delete(table, ToSlice(key));
}

absl::StatusOr<std::string> Transaction::Get(rocksdb::ColumnFamilyHandle* table, absl::string_view key) {
  std::string value;
  const rocksdb::Status status =
      batch_.GetFromBatchAndDB(database_->db(), rocksdb::ReadOptions(), table, ToSlice(key), &value);
  if (status.IsNotFound()) return absl::NotFoundError("no such record");
  if (!status.ok()) return FromRocks(status, "read " + table->GetName());
  return value;
}

std::unique_ptr<rocksdb::Iterator> Transaction::Iterate(rocksdb::ColumnFamilyHandle* table) {
  return std::unique_ptr<rocksdb::Iterator>(
      batch_.NewIteratorWithBase(table, database_->db()->NewIterator(rocksdb::ReadOptions(), table)));
}

GroupCommitter::GroupCommitter(Database* database, std::function<void()> on_failed_write)
    : database_(database), on_failed_write_(std::move(on_failed_write)), thread_([this] { Loop(); }) {}

GroupCommitter::~GroupCommitter() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

absl::Status GroupCommitter::Run(size_t size_bytes, absl::FunctionRef<absl::Status(Transaction&)> apply) {
  Request request{apply, size_bytes, absl::OkStatus()};
  absl::MutexLock lock(&mu_);
  if (!mu_.AwaitWithTimeout(absl::Condition(this, &GroupCommitter::HasRoom), kQueueTimeout)) {
    return absl::UnavailableError("the store's queue stays full; its disk may be slow or stuck");
  }
  queue_.push_back(&request);
  queued_bytes_ += size_bytes;
  // Ends with the disk's answer: the request lives on this stack, so it cannot be left behind.
  mu_.Await(absl::Condition(&request.done));
  return request.status;
}

void GroupCommitter::Loop() {
  std::vector<Request*> requests;
  for (;;) {
    {
      absl::MutexLock lock(&mu_);
      mu_.Await(absl::Condition(this, &GroupCommitter::HasWork));
      if (queue_.empty()) return;
      size_t bytes = 0;
      while (!queue_.empty() && requests.size() < kMaxBatchRequests && (requests.empty() || bytes < kMaxBatchBytes)) {
        bytes += queue_.front()->size_bytes;
        requests.push_back(queue_.front());
        queue_.pop_front();
      }
      queued_bytes_ -= bytes;
    }
    Process(requests);
    {
      absl::MutexLock lock(&mu_);
      for (Request* request : requests) request->done = true;
    }
    requests.clear();
  }
}

void GroupCommitter::Process(const std::vector<Request*>& requests) {
  Transaction transaction(database_);
  for (Request* request : requests) {
    if (transaction.abandoned_) break;
    const size_t size_before = transaction.batch_.GetDataSize();
    transaction.batch_.SetSavePoint();
    request->status = request->apply(transaction);
    if (!request->status.ok() && transaction.batch_.GetDataSize() != size_before) {
      transaction.batch_.RollbackToSavePoint();
    } else {
      transaction.batch_.PopSavePoint();
    }
  }
  if (transaction.abandoned_) {
    on_failed_write_();
    for (Request* request : requests) {
      if (request->status.ok())
        request->status = absl::UnavailableError("another request broke this one's batch; try again");
    }
    return;
  }
  if (transaction.batch_.GetWriteBatch()->Count() == 0) return;
  const absl::Status written = Write(transaction.batch_);
  if (written.ok()) return;
  spdlog::error("store_write_failed path={} requests={} error=\"{}\"", database_->path(), requests.size(),
                std::string(written.message()));
  on_failed_write_();
  for (Request* request : requests) request->status = written;
}

absl::Status GroupCommitter::Write(rocksdb::WriteBatchWithIndex& batch) {
  if (last_write_failed_) {
    // RocksDB refuses writes after a failed one until it is told to go on; it then begins a new log.
    const rocksdb::Status resumed = database_->db()->Resume();
    if (!resumed.ok()) return FromRocks(resumed, "resume store " + database_->path() + " after a failed write");
    spdlog::info("store_resumed path={}", database_->path());
  }
  rocksdb::WriteOptions options;
  options.sync = true;
  const rocksdb::Status status = database_->db()->Write(options, batch.GetWriteBatch());
  last_write_failed_ = !status.ok();
  return FromRocks(status, "write to store " + database_->path());
}

}  // namespace retort::storage
