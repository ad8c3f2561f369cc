#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "storage/sample_store_impl.h"

namespace retort::storage {
namespace {

absl::StatusOr<int64_t> CountRecords(const Database& database, rocksdb::ColumnFamilyHandle* table) {
  const std::unique_ptr<rocksdb::Iterator> it(database.db()->NewIterator(rocksdb::ReadOptions(), table));
  int64_t count = 0;
  for (it->SeekToFirst(); it->Valid(); it->Next()) count += it->key() == rocksdb::Slice(kNextLeaseEpochKey) ? 0 : 1;
  RETURN_IF_ERROR(FromRocks(it->status(), absl::StrCat("read ", table->GetName())));
  return count;
}

}  // namespace

absl::StatusOr<v1::GetStoreStatsResponse> SampleStore::Impl::GetStats() {
  v1::GetStoreStatsResponse stats;
  const std::unique_ptr<rocksdb::Iterator> outcomes(
      database_->db()->NewIterator(rocksdb::ReadOptions(), database_->outcomes()));
  auto& by_reason = *stats.mutable_traces_by_finish_reason()->mutable_counts();
  for (outcomes->SeekToFirst(); outcomes->Valid(); outcomes->Next()) {
    ASSIGN_OR_RETURN(const auto outcome,
                     ParseRecord<v1::OutcomeRecord>(
                         absl::string_view(outcomes->value().data(), outcomes->value().size()), "outcomes"));
    stats.set_traces(stats.traces() + 1);
    ++by_reason[OutcomeName(outcome.finish_reason())];
  }
  RETURN_IF_ERROR(FromRocks(outcomes->status(), "read outcomes"));

  const std::unique_ptr<rocksdb::Iterator> sets(
      database_->db()->NewIterator(rocksdb::ReadOptions(), database_->sample_sets()));
  for (sets->Seek("h"); sets->Valid() && sets->key().starts_with("h"); sets->Next()) {
    ASSIGN_OR_RETURN(
        const auto header,
        ParseRecord<v1::SampleSetRecord>(absl::string_view(sets->value().data(), sets->value().size()), "sample_sets"));
    stats.set_sample_sets(stats.sample_sets() + 1);
    stats.set_prompts(stats.prompts() + header.prompt_count());
  }
  RETURN_IF_ERROR(FromRocks(sets->status(), "read sample_sets"));
  ASSIGN_OR_RETURN(const int64_t partials, CountRecords(*database_, database_->partials()));
  ASSIGN_OR_RETURN(const int64_t leases, CountRecords(*database_, database_->leases()));
  ASSIGN_OR_RETURN(const int64_t manifests, CountRecords(*database_, database_->manifests()));
  stats.set_partials(partials);
  stats.set_leases(leases);
  stats.set_manifests(manifests);
  stats.set_disk_bytes(DiskBytes(database_->path()));
  return stats;
}

absl::StatusOr<v1::ListSampleSetsResponse> SampleStore::Impl::ListSampleSets() {
  std::vector<std::string> ids;
  const std::unique_ptr<rocksdb::Iterator> it(
      database_->db()->NewIterator(rocksdb::ReadOptions(), database_->sample_sets()));
  for (it->Seek("h"); it->Valid() && it->key().starts_with("h"); it->Next())
    ids.push_back(it->key().ToString().substr(1));
  RETURN_IF_ERROR(FromRocks(it->status(), "read sample_sets"));
  v1::ListSampleSetsResponse response;
  for (const std::string& id : ids) {
    ASSIGN_OR_RETURN(*response.add_sets(), GetSampleSet(id));
  }
  return response;
}

}  // namespace retort::storage
