// The RocksDB under the sample store: its column families, options and key layout.
//
//   prompts      set id, 0, prompt index (8 bytes, big-endian)   PromptRecord
//   traces       trace key (100 bytes)                           Trace
//   outcomes     trace key                                       OutcomeRecord
//   partials     trace key                                       PartialTrace
//   leases       trace key                                       LeaseRecord
//                "next_lease_epoch"                              8 bytes, little-endian
//   manifests    SHA-256, hex                                    Manifest
//   sample_sets  "h", set id                                     SampleSetRecord
//                "s", set id, 0, first prompt index (big-endian) SampleSliceRecord
//
// A trace key is model revision, sampling hash, prompt hash (32 bytes each), sample index (4 bytes, big-endian): the
// keys that one model wrote in one way lie together.
#pragma once

#include <rocksdb/db.h>

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "retort/v1/sample_service.pb.h"

namespace retort::storage {

inline constexpr size_t kHashBytes = 32;
inline constexpr size_t kTraceKeyBytes = 3 * kHashBytes + 4;
inline constexpr char kNextLeaseEpochKey[] = "next_lease_epoch";

// The same meaning in absl's words, `what` before the message. NoSpace is kResourceExhausted, Corruption kDataLoss.
absl::Status FromRocks(const rocksdb::Status& status, absl::string_view what);

rocksdb::Slice ToSlice(absl::string_view text);

// Parts of a trace key. Errors: kInvalidArgument (a hash of another length than 32 bytes, a negative index).
absl::StatusOr<std::string> EncodeTraceKey(const v1::TraceKey& key);
std::string EncodeTraceKey(absl::string_view model_revision, absl::string_view sampling_hash,
                           absl::string_view prompt_hash, int32_t sample_index);
// Errors: kDataLoss (not kTraceKeyBytes long).
absl::StatusOr<v1::TraceKey> DecodeTraceKey(absl::string_view encoded);

std::string EncodePromptPrefix(absl::string_view sample_set_id);
std::string EncodePromptKey(absl::string_view sample_set_id, int64_t prompt_index);
std::string EncodeSetHeaderKey(absl::string_view sample_set_id);
std::string EncodeSlicePrefix(absl::string_view sample_set_id);
std::string EncodeSliceKey(absl::string_view sample_set_id, int64_t first_prompt_index);
// The index at the end of a prompt or slice key.
int64_t DecodeIndexSuffix(absl::string_view key);
std::string EncodeU64(uint64_t value);
// Errors: kDataLoss (not 8 bytes long).
absl::StatusOr<uint64_t> DecodeU64(absl::string_view encoded);

// Parses a record. Errors: kDataLoss naming the table.
template <typename Record>
absl::StatusOr<Record> ParseRecord(absl::string_view bytes, absl::string_view table) {
  Record record;
  if (!record.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return absl::DataLossError(std::string(table) + ": a record cannot be parsed; run distctl store verify");
  return record;
}

// An open database. Thread-safe as RocksDB is.
class Database {
 public:
  // Errors: kUnavailable (locked by another process), kDataLoss, kResourceExhausted, kInternal.
  static absl::StatusOr<std::unique_ptr<Database>> Open(const std::string& path, rocksdb::Env* env);
  ~Database();

  rocksdb::DB* db() const { return db_; }
  const std::string& path() const { return path_; }

  rocksdb::ColumnFamilyHandle* prompts() const { return handles_[1]; }
  rocksdb::ColumnFamilyHandle* traces() const { return handles_[2]; }
  rocksdb::ColumnFamilyHandle* outcomes() const { return handles_[3]; }
  rocksdb::ColumnFamilyHandle* partials() const { return handles_[4]; }
  rocksdb::ColumnFamilyHandle* leases() const { return handles_[5]; }
  rocksdb::ColumnFamilyHandle* manifests() const { return handles_[6]; }
  rocksdb::ColumnFamilyHandle* sample_sets() const { return handles_[7]; }

  // Bytes of the value, or kNotFound.
  absl::StatusOr<std::string> Get(rocksdb::ColumnFamilyHandle* table, absl::string_view key,
                                  const rocksdb::Snapshot* snapshot = nullptr) const;

 private:
  Database(std::string path, rocksdb::DB* db, std::vector<rocksdb::ColumnFamilyHandle*> handles);

  const std::string path_;
  rocksdb::DB* const db_;
  const std::vector<rocksdb::ColumnFamilyHandle*> handles_;  // in the order of kTables, "default" first
};

// The bytes on disk under a folder.
int64_t DiskBytes(const std::string& path);

}  // namespace retort::storage
