#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/hash.h"
#include "common/rpc/manifest_hash.h"
#include "common/status.h"
#include "storage/manifest.h"
#include "storage/sample_store_impl.h"

namespace retort::storage {
namespace {

constexpr int kMaxProblems = 1000;

// One pass over a snapshot. Problems are collected, not returned as errors, so that one bad record does not hide the
// next.
class Verifier {
 public:
  explicit Verifier(const Database& database) : database_(database), snapshot_(database.db()->GetSnapshot()) {}
  ~Verifier() { database_.db()->ReleaseSnapshot(snapshot_); }

  v1::VerifyStoreResponse Run() {
    ForEach(database_.outcomes(),
            [this](const std::string& key, absl::string_view value) { CheckOutcome(key, value); });
    ForEach(database_.traces(), [this](const std::string& key, absl::string_view value) { CheckTrace(key, value); });
    ForEach(database_.partials(),
            [this](const std::string& key, absl::string_view value) { CheckPartial(key, value); });
    ForEach(database_.leases(), [this](const std::string& key, absl::string_view value) { CheckLease(key, value); });
    ForEach(database_.sample_sets(), [this](const std::string& key, absl::string_view value) {
      if (key.starts_with("h")) CheckSet(key.substr(1), value);
    });
    ForEach(database_.prompts(), [this](const std::string& key, absl::string_view value) { CheckPrompt(key, value); });
    ForEach(database_.manifests(),
            [this](const std::string& key, absl::string_view value) { CheckManifest(key, value); });
    const rocksdb::Status checksums = database_.db()->VerifyChecksum();
    if (!checksums.ok()) Problem(absl::StrCat("checksums: ", checksums.ToString()));
    return std::move(response_);
  }

 private:
  void Problem(std::string text) {
    if (response_.problems_size() < kMaxProblems) response_.add_problems(std::move(text));
  }

  void ForEach(rocksdb::ColumnFamilyHandle* table,
               const std::function<void(const std::string&, absl::string_view)>& visit) {
    rocksdb::ReadOptions options;
    options.snapshot = snapshot_;
    options.verify_checksums = true;
    options.fill_cache = false;
    const std::unique_ptr<rocksdb::Iterator> it(database_.db()->NewIterator(options, table));
    for (it->SeekToFirst(); it->Valid(); it->Next()) {
      response_.set_records_checked(response_.records_checked() + 1);
      visit(it->key().ToString(), absl::string_view(it->value().data(), it->value().size()));
    }
    if (!it->status().ok()) Problem(absl::StrCat(table->GetName(), ": ", it->status().ToString()));
  }

  bool Has(rocksdb::ColumnFamilyHandle* table, absl::string_view key) {
    return database_.Get(table, key, snapshot_).ok();
  }

  static std::string Name(const std::string& trace_key) {
    const auto key = DecodeTraceKey(trace_key);
    if (!key.ok()) return "(malformed key)";
    Sha256Digest hash;
    std::copy(key->prompt_hash().begin(), key->prompt_hash().end(), hash.begin());
    return absl::StrCat("prompt ", ToHex(hash).substr(0, 16), " sample ", key->sample_index());
  }

  void CheckOutcome(const std::string& key, absl::string_view value) {
    if (!ParseRecord<v1::OutcomeRecord>(value, "outcomes").ok())
      Problem(absl::StrCat("outcome of ", Name(key), ": unreadable"));
    if (!Has(database_.traces(), key)) Problem(absl::StrCat("trace of ", Name(key), ": is missing"));
  }

  void CheckTrace(const std::string& key, absl::string_view value) {
    const auto trace = ParseRecord<v1::Trace>(value, "traces");
    if (!trace.ok()) return Problem(absl::StrCat("trace of ", Name(key), ": unreadable"));
    const auto inner_key = EncodeTraceKey(trace->key());
    if (!inner_key.ok() || *inner_key != key) Problem(absl::StrCat("trace of ", Name(key), ": belongs to another key"));
    const auto outcome_bytes = database_.Get(database_.outcomes(), key, snapshot_);
    if (!outcome_bytes.ok()) return Problem(absl::StrCat("outcome of ", Name(key), ": is missing"));
    const auto outcome = ParseRecord<v1::OutcomeRecord>(*outcome_bytes, "outcomes");
    if (outcome.ok() && outcome->content_sha256() != TraceContentHash(*trace))
      Problem(absl::StrCat("trace of ", Name(key), ": its contents are not those that were committed"));
  }

  void CheckPartial(const std::string& key, absl::string_view value) {
    const auto partial = ParseRecord<v1::PartialTrace>(value, "partials");
    if (!partial.ok()) return Problem(absl::StrCat("partial of ", Name(key), ": unreadable"));
    const auto inner_key = EncodeTraceKey(partial->key());
    if (!inner_key.ok() || *inner_key != key)
      Problem(absl::StrCat("partial of ", Name(key), ": belongs to another key"));
    if (Has(database_.traces(), key)) Problem(absl::StrCat("partial of ", Name(key), ": its trace is finished"));
  }

  void CheckLease(const std::string& key, absl::string_view value) {
    if (key == kNextLeaseEpochKey) {
      const auto next = DecodeU64(value);
      if (!next.ok()) Problem("leases: the next epoch is unreadable");
      next_epoch_ = next.value_or(0);
      if (largest_epoch_ >= next_epoch_) Problem("leases: an epoch is above the next one to be given");
      return;
    }
    const auto lease = ParseRecord<v1::LeaseRecord>(value, "leases");
    if (!lease.ok()) return Problem(absl::StrCat("lease of ", Name(key), ": unreadable"));
    largest_epoch_ = std::max(largest_epoch_, lease->lease_epoch());
    if (next_epoch_ != 0 && largest_epoch_ >= next_epoch_)
      Problem("leases: an epoch is above the next one to be given");
    if (Has(database_.traces(), key)) Problem(absl::StrCat("lease of ", Name(key), ": its trace is finished"));
  }

  void CheckSet(const std::string& id, absl::string_view value) {
    const auto header = ParseRecord<v1::SampleSetRecord>(value, "sample_sets");
    if (!header.ok()) return Problem(absl::StrCat("sample set ", id, ": unreadable"));
    set_prefixes_.insert(EncodePromptPrefix(id));
    rocksdb::ReadOptions options;
    options.snapshot = snapshot_;
    const std::unique_ptr<rocksdb::Iterator> slices(database_.db()->NewIterator(options, database_.sample_sets()));
    std::string hashes;
    const std::string slice_prefix = EncodeSlicePrefix(id);
    for (slices->Seek(slice_prefix); slices->Valid() && slices->key().starts_with(slice_prefix); slices->Next()) {
      const auto slice = ParseRecord<v1::SampleSliceRecord>(
          absl::string_view(slices->value().data(), slices->value().size()), "sample_sets");
      if (!slice.ok()) return Problem(absl::StrCat("sample set ", id, ": a slice is unreadable"));
      if (DecodeIndexSuffix(slices->key().ToString()) != static_cast<int64_t>(hashes.size() / kHashBytes))
        Problem(absl::StrCat("sample set ", id, ": a slice is missing"));
      hashes += slice->prompt_hashes();
    }
    if (!header->imported() && static_cast<int64_t>(hashes.size() / kHashBytes) != header->prompt_count())
      Problem(absl::StrCat("sample set ", id, ": its slices do not hold the ", header->prompt_count(),
                           " prompts of its header"));

    const std::unique_ptr<rocksdb::Iterator> prompts(database_.db()->NewIterator(options, database_.prompts()));
    const std::string prefix = EncodePromptPrefix(id);
    int64_t count = 0;
    for (prompts->Seek(prompt_start(id)); prompts->Valid() && prompts->key().starts_with(prefix);
         prompts->Next(), ++count) {
      const auto record =
          ParseRecord<v1::PromptRecord>(absl::string_view(prompts->value().data(), prompts->value().size()), "prompts");
      if (!record.ok()) continue;  // CheckPrompt reports it
      const auto at = static_cast<size_t>(count) * kHashBytes;
      if (!header->imported() && at + kHashBytes <= hashes.size() &&
          absl::string_view(hashes).substr(at, kHashBytes) != record->prompt().prompt_hash()) {
        Problem(absl::StrCat("sample set ", id, ": prompt ", count, " is not the one that was declared"));
      }
      if (header->imported() &&
          (record->prompt().prompt_hash().size() != kHashBytes ||
           !Has(database_.traces(), EncodeTraceKey(header->model_revision(), header->sampling_hash(),
                                                   record->prompt().prompt_hash(), record->sample_index())))) {
        Problem(absl::StrCat("sample set ", id, ": row ", count, " has no trace"));
      }
    }
    if (count != header->prompt_count())
      Problem(absl::StrCat("sample set ", id, ": has ", count, " prompts, its header says ", header->prompt_count()));
  }
  static std::string prompt_start(const std::string& id) { return EncodePromptKey(id, 0); }

  void CheckPrompt(const std::string& key, absl::string_view value) {
    if (key.size() < 9 || !set_prefixes_.contains(key.substr(0, key.size() - 8)))
      return Problem("a prompt of no sample set");
    const std::string where =
        absl::StrCat("sample set ", key.substr(0, key.size() - 9), " prompt ", DecodeIndexSuffix(key));
    const auto record = ParseRecord<v1::PromptRecord>(value, "prompts");
    if (!record.ok()) return Problem(absl::StrCat(where, ": unreadable"));
    if (record->prompt().prompt_index() != DecodeIndexSuffix(key))
      Problem(absl::StrCat(where, ": belongs to another index"));
  }

  void CheckManifest(const std::string& key, absl::string_view value) {
    const auto manifest = ParseRecord<v1::Manifest>(value, "manifests");
    if (!manifest.ok() || !ValidateManifest(*manifest).ok())
      return Problem(absl::StrCat("manifest ", key, ": unreadable"));
    if (ManifestHash(*manifest) != key) Problem(absl::StrCat("manifest ", key, ": its contents have another hash"));
    int64_t missing = 0;
    for (const v1::TraceKey& trace_key : manifest->keys()) {
      const auto encoded = EncodeTraceKey(trace_key);
      if (!encoded.ok() || !Has(database_.traces(), *encoded)) ++missing;
    }
    if (missing > 0) Problem(absl::StrCat("manifest ", key, ": ", missing, " of its traces are missing"));
  }

  const Database& database_;
  const rocksdb::Snapshot* const snapshot_;
  v1::VerifyStoreResponse response_;
  absl::flat_hash_set<std::string> set_prefixes_;
  uint64_t next_epoch_ = 0;
  uint64_t largest_epoch_ = 0;
};

}  // namespace

absl::StatusOr<v1::VerifyStoreResponse> SampleStore::Impl::Verify() { return Verifier(*database_).Run(); }

}  // namespace retort::storage
