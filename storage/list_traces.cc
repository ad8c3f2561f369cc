#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "storage/sample_store_impl.h"

namespace retort::storage {
namespace {

constexpr size_t kBatchBytes = 1 << 20;
constexpr int kBatchItems = 256;

class SnapshotHolder {
 public:
  explicit SnapshotHolder(rocksdb::DB* db) : db_(db), snapshot_(db->GetSnapshot()) {}
  ~SnapshotHolder() { db_->ReleaseSnapshot(snapshot_); }
  SnapshotHolder(const SnapshotHolder&) = delete;
  SnapshotHolder& operator=(const SnapshotHolder&) = delete;
  const rocksdb::Snapshot* get() const { return snapshot_; }

 private:
  rocksdb::DB* const db_;
  const rocksdb::Snapshot* const snapshot_;
};

}  // namespace

absl::Status SampleStore::Impl::ListTraces(const v1::ListTracesRequest& request,
                                           absl::FunctionRef<absl::Status(const v1::ListTracesResponse&)> emit) {
  RETURN_IF_ERROR(CheckSampleSetId(request.sample_set_id()));
  if (request.first_prompt_index() < 0) return absl::InvalidArgumentError("first_prompt_index: must not be negative");
  if (request.limit() < 0) return absl::InvalidArgumentError("limit: must not be negative");
  const SnapshotHolder snapshot(database_->db());
  const auto header_bytes =
      database_->Get(database_->sample_sets(), EncodeSetHeaderKey(request.sample_set_id()), snapshot.get());
  if (absl::IsNotFound(header_bytes.status()))
    return absl::NotFoundError(
        absl::StrCat("sample set \"", request.sample_set_id(), "\": there is none of that name"));
  if (!header_bytes.ok()) return header_bytes.status();
  ASSIGN_OR_RETURN(const auto header, ParseRecord<v1::SampleSetRecord>(*header_bytes, "sample_sets"));

  v1::ListTracesResponse batch;
  size_t batch_bytes = 0;
  int64_t left = request.limit() == 0 ? INT64_MAX : request.limit();
  const auto flush = [&]() -> absl::Status {
    if (batch.items_size() == 0) return absl::OkStatus();
    RETURN_IF_ERROR(emit(batch));
    batch.Clear();
    batch_bytes = 0;
    return absl::OkStatus();
  };

  rocksdb::ReadOptions options;
  options.snapshot = snapshot.get();
  options.readahead_size = kBatchBytes;
  const std::unique_ptr<rocksdb::Iterator> it(database_->db()->NewIterator(options, database_->prompts()));
  const std::string prefix = EncodePromptPrefix(request.sample_set_id());
  it->Seek(EncodePromptKey(request.sample_set_id(), request.first_prompt_index()));
  for (; left > 0 && it->Valid() && it->key().starts_with(prefix); it->Next()) {
    ASSIGN_OR_RETURN(const auto record, ParseRecord<v1::PromptRecord>(
                                            absl::string_view(it->value().data(), it->value().size()), "prompts"));
    const int32_t first = header.imported() ? record.sample_index() : 0;
    const int32_t end = header.imported() ? record.sample_index() + 1 : header.n();
    for (int32_t sample = first; sample < end && left > 0; ++sample) {
      const auto bytes = database_->Get(
          database_->traces(),
          EncodeTraceKey(header.model_revision(), header.sampling_hash(), record.prompt().prompt_hash(), sample),
          snapshot.get());
      if (absl::IsNotFound(bytes.status())) continue;
      if (!bytes.ok()) return bytes.status();
      v1::ListTracesResponse::Item& item = *batch.add_items();
      *item.mutable_prompt() = record.prompt();
      ASSIGN_OR_RETURN(*item.mutable_trace(), ParseRecord<v1::Trace>(*bytes, "traces"));
      --left;
      batch_bytes += item.ByteSizeLong();
      // A batch stays below the size of a message: prompt and trace are bounded when they are stored.
      if (batch_bytes >= kBatchBytes || batch.items_size() >= kBatchItems) RETURN_IF_ERROR(flush());
    }
  }
  RETURN_IF_ERROR(FromRocks(it->status(), "read prompts"));
  return flush();
}

}  // namespace retort::storage
