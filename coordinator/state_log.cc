#include "coordinator/state_log.h"

#include <rocksdb/cache.h>
#include <rocksdb/db.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/fault.h"
#include "common/file.h"
#include "common/log.h"
#include "common/status.h"

namespace retort {
namespace {

constexpr absl::Duration kRetryInterval = absl::Seconds(1);

rocksdb::Options DatabaseOptions(rocksdb::Env* env) {
  rocksdb::Options options;
  if (env != nullptr) options.env = env;
  options.create_if_missing = true;
  options.paranoid_checks = true;
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  options.track_and_verify_wals_in_manifest = true;
  options.recycle_log_file_num = 0;
  // The whole state is in memory anyway, so caches stay small.
  options.write_buffer_size = 4 << 20;
  options.max_total_wal_size = 32 << 20;
  options.max_open_files = 64;
  options.max_background_jobs = 2;
  options.keep_log_file_num = 3;
  options.max_log_file_size = 1 << 20;
  options.stats_dump_period_sec = 0;
  rocksdb::BlockBasedTableOptions table;
  table.block_cache = rocksdb::NewLRUCache(2 << 20);
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  return options;
}

absl::Status ToStatus(const rocksdb::Status& status, const std::string& what) {
  const std::string text = absl::StrCat(what, ": ", status.ToString());
  if (status.IsNoSpace() || absl::StrContains(text, "No space left")) {
    return absl::ResourceExhaustedError(absl::StrCat(text, "; free some disk space"));
  }
  if (status.IsIOError() && absl::StrContains(text, "lock")) {
    return absl::UnavailableError(absl::StrCat("another coordinator uses this state folder (", text,
                                               "); stop it, or choose another --state-dir"));
  }
  if (status.IsCorruption()) return absl::DataLossError(absl::StrCat(text, "; restore the folder from a backup"));
  if (absl::StrContains(text, "Permission denied")) return absl::PermissionDeniedError(text);
  return absl::InternalError(text);
}

}  // namespace

absl::StatusOr<std::unique_ptr<StateLog>> StateLog::Open(const std::string& path, rocksdb::Env* env) {
  RETURN_IF_ERROR(MakeFolders(path, 0700));
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(DatabaseOptions(env), path, &db);
  if (!status.ok()) return ToStatus(status, absl::StrCat("open state log ", path));
  return std::unique_ptr<StateLog>(new StateLog(db));
}

StateLog::StateLog(rocksdb::DB* db) : db_(db), writer_([this] { WriteLoop(); }) {}

StateLog::~StateLog() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    work_.SignalAll();
  }
  writer_.join();
  db_->Close();
}

absl::Status StateLog::ForEach(
    const std::function<absl::Status(absl::string_view key, absl::string_view value)>& record) const {
  const std::unique_ptr<rocksdb::Iterator> it(db_->NewIterator(rocksdb::ReadOptions()));
  for (it->SeekToFirst(); it->Valid(); it->Next()) {
    RETURN_IF_ERROR(record(absl::string_view(it->key().data(), it->key().size()),
                           absl::string_view(it->value().data(), it->value().size())));
  }
  return it->status().ok() ? absl::OkStatus() : ToStatus(it->status(), "read the state log");
}

uint64_t StateLog::Append(std::vector<RecordChange> changes) {
  absl::MutexLock lock(&mu_);
  for (RecordChange& change : changes) queue_.push_back(std::move(change));
  work_.Signal();
  return ++last_;
}

absl::Status StateLog::WaitDurable(uint64_t position, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  absl::MutexLock lock(&mu_);
  while (durable_ < position) {
    if (!failure_.ok()) {
      return absl::UnavailableError(
          absl::StrCat("the coordinator's state cannot be written: ", std::string(failure_.message())));
    }
    if (durable_changed_.WaitWithDeadline(&mu_, deadline) && durable_ < position) {
      return absl::UnavailableError("the coordinator's disk is too slow: a change was not written in time; try again");
    }
  }
  return absl::OkStatus();
}

uint64_t StateLog::last_position() const {
  absl::MutexLock lock(&mu_);
  return last_;
}

void StateLog::WriteLoop() {
  while (true) {
    std::vector<RecordChange> changes;
    uint64_t position = 0;
    {
      absl::MutexLock lock(&mu_);
      while (queue_.empty() && durable_ == last_ && !stopping_) work_.Wait(&mu_);
      if (queue_.empty() && durable_ == last_) return;
      changes.swap(queue_);
      position = last_;
    }
    rocksdb::WriteBatch batch;
    for (const RecordChange& change : changes) {
      if (change.is_delete) {
        batch.Delete(change.key);
      } else {
        batch.Put(change.key, change.value);
      }
    }
    rocksdb::WriteOptions synced;
    synced.sync = true;
    MAYBE_FAULT("coordinator_before_state_write");
    rocksdb::Status status = db_->Write(synced, &batch);
    MAYBE_FAULT("coordinator_after_state_write");
    while (!status.ok()) {
      {
        absl::MutexLock lock(&mu_);
        if (failure_.ok()) spdlog::error("state_log_write_failed error=\"{}\"", status.ToString());
        failure_ = ToStatus(status, "write the state log");
        durable_changed_.SignalAll();
        if (stopping_) return;
        work_.WaitWithTimeout(&mu_, kRetryInterval);
        if (stopping_) return;
      }
      // After a failed log write the database refuses all writes until it has moved to a new log.
      status = db_->Resume();
      if (status.ok()) status = db_->Write(synced, &batch);
    }
    absl::MutexLock lock(&mu_);
    if (!failure_.ok()) spdlog::info("state_log_write_recovered");
    failure_ = absl::OkStatus();
    durable_ = position;
    durable_changed_.SignalAll();
  }
}

}  // namespace retort
