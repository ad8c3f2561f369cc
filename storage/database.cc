#include "storage/database.h"

#include <rocksdb/cache.h>
#include <rocksdb/filter_policy.h>
#include <rocksdb/listener.h>
#include <rocksdb/table.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/file.h"
#include "common/status.h"

namespace retort::storage {
namespace {

constexpr const char* kTables[] = {"default",  "prompts", "traces",    "outcomes",
                                   "partials", "leases",  "manifests", "sample_sets"};

// RocksDB would poll the disk by itself after it was full and meanwhile refuse to be told to go on; the committer
// decides when.
class NoAutomaticRecovery final : public rocksdb::EventListener {
 public:
  void OnErrorRecoveryBegin(rocksdb::BackgroundErrorReason reason, rocksdb::Status error, bool* automatic) override {
    *automatic = false;
  }
};

void AppendBigEndian(uint64_t value, int bytes, std::string* out) {
  for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) out->push_back(static_cast<char>(value >> shift));
}

uint64_t ReadBigEndian(absl::string_view bytes) {
  uint64_t value = 0;
  for (const char c : bytes) value = value << 8 | static_cast<uint8_t>(c);
  return value;
}

rocksdb::ColumnFamilyOptions TableOptions(absl::string_view table, const std::shared_ptr<rocksdb::Cache>& cache) {
  rocksdb::ColumnFamilyOptions options;
  const bool large = table == "traces" || table == "prompts";
  options.write_buffer_size = large ? 32 << 20 : 8 << 20;
  options.compression = rocksdb::kLZ4Compression;
  options.level_compaction_dynamic_level_bytes = true;
  rocksdb::BlockBasedTableOptions blocks;
  blocks.block_cache = cache;
  blocks.block_size = large ? 32 << 10 : 8 << 10;
  blocks.filter_policy.reset(rocksdb::NewBloomFilterPolicy(10));
  blocks.format_version = 5;
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(blocks));
  return options;
}

}  // namespace

absl::Status FromRocks(const rocksdb::Status& status, absl::string_view what) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat(std::string(what), ": ", status.ToString());
  if (status.IsNoSpace() || absl::StrContains(message, "No space left"))
    return absl::ResourceExhaustedError(absl::StrCat(message, "; free some disk space and try again"));
  if (status.IsCorruption()) return absl::DataLossError(message);
  if (status.IsNotFound()) return absl::NotFoundError(message);
  if (status.IsInvalidArgument()) return absl::InvalidArgumentError(message);
  return absl::InternalError(message);
}

rocksdb::Slice ToSlice(absl::string_view text) { return rocksdb::Slice(text.data(), text.size()); }

std::string EncodeTraceKey(absl::string_view model_revision, absl::string_view sampling_hash,
                           absl::string_view prompt_hash, int32_t sample_index) {
  std::string encoded;
  encoded.reserve(kTraceKeyBytes);
  absl::StrAppend(&encoded, model_revision, sampling_hash, prompt_hash);
  AppendBigEndian(static_cast<uint32_t>(sample_index), 4, &encoded);
  RETORT_CHECK(encoded.size() == kTraceKeyBytes);
  return encoded;
}

absl::StatusOr<std::string> EncodeTraceKey(const v1::TraceKey& key) {
  const auto check = [](absl::string_view name, absl::string_view value) {
    if (value.size() == kHashBytes) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("key.", std::string(name), ": ", value.size(), " bytes, must be ", kHashBytes));
  };
  RETURN_IF_ERROR(check("prompt_hash", key.prompt_hash()));
  RETURN_IF_ERROR(check("model_revision", key.model_revision()));
  RETURN_IF_ERROR(check("sampling_hash", key.sampling_hash()));
  if (key.sample_index() < 0) return absl::InvalidArgumentError("key.sample_index: must not be negative");
  return EncodeTraceKey(key.model_revision(), key.sampling_hash(), key.prompt_hash(), key.sample_index());
}

absl::StatusOr<v1::TraceKey> DecodeTraceKey(absl::string_view encoded) {
  if (encoded.size() != kTraceKeyBytes)
    return absl::DataLossError(absl::StrCat("a trace key of ", encoded.size(), " bytes, not ", kTraceKeyBytes));
  v1::TraceKey key;
  key.set_model_revision(std::string(encoded.substr(0, kHashBytes)));
  key.set_sampling_hash(std::string(encoded.substr(kHashBytes, kHashBytes)));
  key.set_prompt_hash(std::string(encoded.substr(2 * kHashBytes, kHashBytes)));
  key.set_sample_index(static_cast<int32_t>(ReadBigEndian(encoded.substr(3 * kHashBytes))));
  return key;
}

std::string EncodePromptPrefix(absl::string_view sample_set_id) {
  std::string key(sample_set_id);
  key.push_back('\0');
  return key;
}

std::string EncodePromptKey(absl::string_view sample_set_id, int64_t prompt_index) {
  std::string key = EncodePromptPrefix(sample_set_id);
  AppendBigEndian(static_cast<uint64_t>(prompt_index), 8, &key);
  return key;
}

std::string EncodeSetHeaderKey(absl::string_view sample_set_id) { return absl::StrCat("h", sample_set_id); }

std::string EncodeSlicePrefix(absl::string_view sample_set_id) {
  return absl::StrCat("s", EncodePromptPrefix(sample_set_id));
}

std::string EncodeSliceKey(absl::string_view sample_set_id, int64_t first_prompt_index) {
  return absl::StrCat("s", EncodePromptKey(sample_set_id, first_prompt_index));
}

int64_t DecodeIndexSuffix(absl::string_view key) {
  RETORT_CHECK(key.size() >= 8);
  return static_cast<int64_t>(ReadBigEndian(key.substr(key.size() - 8)));
}

std::string EncodeU64(uint64_t value) {
  std::string encoded;
  for (int shift = 0; shift < 64; shift += 8) encoded.push_back(static_cast<char>(value >> shift));
  return encoded;
}

absl::StatusOr<uint64_t> DecodeU64(absl::string_view encoded) {
  if (encoded.size() != 8) return absl::DataLossError("a number that is not 8 bytes long");
  uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(encoded[static_cast<size_t>(i)]);
  return value;
}

Database::Database(std::string path, rocksdb::DB* db, std::vector<rocksdb::ColumnFamilyHandle*> handles)
    : path_(std::move(path)), db_(db), handles_(std::move(handles)) {}

Database::~Database() {
  for (rocksdb::ColumnFamilyHandle* handle : handles_) db_->DestroyColumnFamilyHandle(handle);
  db_->Close();
  delete db_;
}

absl::StatusOr<std::unique_ptr<Database>> Database::Open(const std::string& path, rocksdb::Env* env) {
  RETURN_IF_ERROR(MakeFolders(path, 0700));
  rocksdb::DBOptions options;
  if (env != nullptr) options.env = env;
  options.create_if_missing = true;
  options.create_missing_column_families = true;
  options.paranoid_checks = true;
  options.wal_recovery_mode = rocksdb::WALRecoveryMode::kTolerateCorruptedTailRecords;
  options.track_and_verify_wals_in_manifest = true;
  options.recycle_log_file_num = 0;  // recycled logs would blur where the last record ends
  options.max_total_wal_size = 256 << 20;
  options.max_open_files = 512;
  options.bytes_per_sync = 1 << 20;
  options.keep_log_file_num = 3;
  options.max_log_file_size = 4 << 20;
  options.stats_dump_period_sec = 0;
  options.max_bgerror_resume_count = 0;
  options.listeners.push_back(std::make_shared<NoAutomaticRecovery>());

  const auto cache = rocksdb::NewLRUCache(32 << 20);
  std::vector<rocksdb::ColumnFamilyDescriptor> tables;
  for (const char* table : kTables) tables.emplace_back(table, TableOptions(table, cache));
  std::vector<rocksdb::ColumnFamilyHandle*> handles;
  rocksdb::DB* db = nullptr;
  const rocksdb::Status status = rocksdb::DB::Open(options, path, tables, &handles, &db);
  if (!status.ok()) {
    const std::string text = status.ToString();
    if (status.IsIOError() && absl::StrContains(text, "lock")) {
      return absl::UnavailableError(absl::StrCat("open store ", path, ": another process has it open (", text, ")"));
    }
    return FromRocks(status, absl::StrCat("open store ", path));
  }
  return std::unique_ptr<Database>(new Database(path, db, std::move(handles)));
}

absl::StatusOr<std::string> Database::Get(rocksdb::ColumnFamilyHandle* table, absl::string_view key,
                                          const rocksdb::Snapshot* snapshot) const {
  rocksdb::ReadOptions options;
  options.snapshot = snapshot;
  std::string value;
  const rocksdb::Status status = db_->Get(options, table, ToSlice(key), &value);
  if (status.IsNotFound()) return absl::NotFoundError(absl::StrCat(table->GetName(), ": no such record"));
  if (!status.ok()) return FromRocks(status, absl::StrCat("read ", table->GetName()));
  return value;
}

int64_t DiskBytes(const std::string& path) {
  int64_t total = 0;
  std::error_code error;
  for (auto it = std::filesystem::recursive_directory_iterator(path, error);
       !error && it != std::filesystem::recursive_directory_iterator(); it.increment(error)) {
    std::error_code gone;  // compaction removes files while they are counted
    if (!it->is_regular_file(gone)) continue;
    const auto size = it->file_size(gone);
    if (!gone) total += static_cast<int64_t>(size);
  }
  return total;
}

}  // namespace retort::storage
