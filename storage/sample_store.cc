#include "storage/sample_store.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/hash.h"
#include "common/status.h"
#include "storage/sample_store_impl.h"

namespace retort::storage {
namespace {

constexpr size_t kMaxIdBytes = 256;

absl::Status CheckId(absl::string_view name, absl::string_view id) {
  const bool printable =
      std::all_of(id.begin(), id.end(), [](char c) { return absl::ascii_isprint(static_cast<unsigned char>(c)); });
  if (!id.empty() && id.size() <= kMaxIdBytes && printable) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(name), ": must be 1 to ", kMaxIdBytes, " printable ASCII characters"));
}

}  // namespace

absl::Status CheckSampleSetId(absl::string_view sample_set_id) { return CheckId("sample_set_id", sample_set_id); }

absl::Status CheckTaskRef(const v1::TaskRef& ref) { return CheckId("ref.task_id", ref.task_id()); }

std::string TraceContentHash(const v1::Trace& trace) {
  Sha256 hash;
  hash.UpdateField(trace.text());
  hash.UpdateField(trace.reasoning());
  hash.UpdateField(trace.finish_reason());
  hash.UpdateField(trace.error());
  hash.UpdateU64(static_cast<uint64_t>(trace.prompt_tokens()));
  hash.UpdateU64(static_cast<uint64_t>(trace.completion_tokens()));
  hash.UpdateField(absl::string_view(reinterpret_cast<const char*>(trace.token_ids().data()),
                                     static_cast<size_t>(trace.token_ids_size()) * sizeof(int32_t)));
  hash.UpdateField(absl::string_view(reinterpret_cast<const char*>(trace.logprobs().data()),
                                     static_cast<size_t>(trace.logprobs_size()) * sizeof(float)));
  return ToBytes(hash.Finish());
}

SampleStore::Impl::Impl(std::unique_ptr<Database> database, const Clock* clock)
    : database_(std::move(database)), clock_(clock), committer_(database_.get(), [this] {
        reload_status_ = Reload();
        if (!reload_status_.ok()) {
          spdlog::error("store_reload_failed path={} error=\"{}\"", database_->path(),
                        std::string(reload_status_.message()));
        }
      }) {}

absl::Status SampleStore::Impl::Reload() {
  sets_.clear();
  families_.clear();
  finished_.clear();
  leases_.Clear();
  const std::unique_ptr<rocksdb::Iterator> it(
      database_->db()->NewIterator(rocksdb::ReadOptions(), database_->leases()));
  for (it->SeekToFirst(); it->Valid(); it->Next()) {
    const absl::string_view value(it->value().data(), it->value().size());
    if (it->key() == rocksdb::Slice(kNextLeaseEpochKey)) {
      ASSIGN_OR_RETURN(next_lease_epoch_, DecodeU64(value));
      continue;
    }
    ASSIGN_OR_RETURN(auto record, ParseRecord<v1::LeaseRecord>(value, "leases"));
    leases_.Add(it->key().ToString(), Lease{record.holder(), record.lease_epoch(), record.request_id()});
  }
  return FromRocks(it->status(), "read leases");
}

absl::Status SampleStore::Impl::EnsureLoaded() {
  if (!reload_status_.ok()) reload_status_ = Reload();
  return reload_status_;
}

absl::StatusOr<v1::SampleSetRecord> SampleStore::Impl::ReadHeader(Transaction& transaction,
                                                                  const std::string& sample_set_id) {
  const auto bytes = transaction.Get(database_->sample_sets(), EncodeSetHeaderKey(sample_set_id));
  if (absl::IsNotFound(bytes.status()))
    return absl::NotFoundError(absl::StrCat("sample set \"", sample_set_id, "\": there is none of that name"));
  if (!bytes.ok()) return bytes.status();
  return ParseRecord<v1::SampleSetRecord>(*bytes, "sample_sets");
}

absl::StatusOr<std::unique_ptr<SampleSet>> SampleStore::Impl::LoadSet(Transaction& transaction,
                                                                      const std::string& sample_set_id,
                                                                      const v1::SampleSetRecord& header) {
  auto set = std::make_unique<SampleSet>(sample_set_id, header);
  std::string reused;  // one char per position; only the canonical ones are looked at
  const std::string prefix = EncodeSlicePrefix(sample_set_id);
  const auto slices = transaction.Iterate(database_->sample_sets());
  for (slices->Seek(prefix); slices->Valid() && slices->key().starts_with(prefix); slices->Next()) {
    ASSIGN_OR_RETURN(const auto slice,
                     ParseRecord<v1::SampleSliceRecord>(
                         absl::string_view(slices->value().data(), slices->value().size()), "sample_sets"));
    const absl::string_view hashes = slice.prompt_hashes();
    const auto positions = static_cast<int64_t>(hashes.size() / kHashBytes) * header.n();
    if (hashes.size() % kHashBytes != 0 ||
        DecodeIndexSuffix(slices->key().ToString()) != set->record().prompt_count() ||
        static_cast<int64_t>(slice.reused().size()) != (positions + 7) / 8) {
      return absl::DataLossError(
          absl::StrCat("sample set ", sample_set_id, ": a slice is damaged; run distctl store verify"));
    }
    for (size_t at = 0; at < hashes.size(); at += kHashBytes) set->AddPrompt(hashes.substr(at, kHashBytes));
    for (int64_t i = 0; i < positions; ++i)
      reused.push_back(static_cast<char>(slice.reused()[static_cast<size_t>(i / 8)] >> (i % 8) & 1));
  }
  RETURN_IF_ERROR(FromRocks(slices->status(), "read sample_sets"));
  if (set->record().prompt_count() != header.prompt_count()) {
    return absl::DataLossError(absl::StrCat("sample set ", sample_set_id, ": has ", set->record().prompt_count(),
                                            " prompts, its header says ", header.prompt_count()));
  }

  const std::string family = set->Family();
  const auto outcomes = transaction.Iterate(database_->outcomes());
  for (outcomes->Seek(family); outcomes->Valid() && outcomes->key().starts_with(family); outcomes->Next()) {
    ASSIGN_OR_RETURN(const auto key, DecodeTraceKey(outcomes->key().ToString()));
    const auto position = set->Find(key.prompt_hash(), key.sample_index());
    if (!position.has_value()) continue;
    ASSIGN_OR_RETURN(const auto outcome,
                     ParseRecord<v1::OutcomeRecord>(
                         absl::string_view(outcomes->value().data(), outcomes->value().size()), "outcomes"));
    set->MarkStored(*position, outcome.finish_reason(), reused[static_cast<size_t>(*position)] != 0);
  }
  RETURN_IF_ERROR(FromRocks(outcomes->status(), "read outcomes"));

  for (int64_t index = 0; index < set->record().prompt_count(); ++index) {
    for (int32_t sample = 0; sample < header.n(); ++sample) {
      const int64_t position = index * header.n() + sample;
      if (set->IsStored(position)) continue;
      const std::string key = set->KeyAt(position);
      const auto canonical = set->Find(absl::string_view(key).substr(2 * kHashBytes, kHashBytes), sample);
      if (canonical != position) continue;
      if (leases_.Find(key) != nullptr) {
        set->AddLeased(1);
      } else {
        set->Enqueue(position, /*first=*/false);
      }
    }
  }
  return set;
}

SampleSet* SampleStore::Impl::Adopt(std::unique_ptr<SampleSet> set) {
  SampleSet* const raw = set.get();
  families_[raw->Family()].push_back(raw);
  sets_[raw->id()] = std::move(set);
  return raw;
}

void SampleStore::Impl::RetireIfFinished(SampleSet* set) {
  if (!set->IsFinished()) return;
  finished_[set->id()] = set->Info();
  const auto family = families_.find(set->Family());
  family->second.erase(std::find(family->second.begin(), family->second.end(), set));
  if (family->second.empty()) families_.erase(family);
  sets_.erase(std::string(set->id()));
}

absl::StatusOr<SampleSet*> SampleStore::Impl::FindSet(Transaction& transaction, const std::string& sample_set_id) {
  RETURN_IF_ERROR(EnsureLoaded());
  const auto it = sets_.find(sample_set_id);
  if (it != sets_.end()) return it->second.get();
  if (finished_.contains(sample_set_id)) return nullptr;
  ASSIGN_OR_RETURN(const auto header, ReadHeader(transaction, sample_set_id));
  if (header.imported()) return nullptr;
  ASSIGN_OR_RETURN(auto loaded, LoadSet(transaction, sample_set_id, header));
  SampleSet* const set = Adopt(std::move(loaded));
  RetireIfFinished(set);
  return finished_.contains(sample_set_id) ? nullptr : set;
}

absl::StatusOr<v1::SampleSetInfo> SampleStore::Impl::InfoOf(Transaction& transaction,
                                                            const std::string& sample_set_id) {
  ASSIGN_OR_RETURN(const SampleSet* set, FindSet(transaction, sample_set_id));
  if (set != nullptr) return set->Info();
  const auto finished = finished_.find(sample_set_id);
  if (finished != finished_.end()) return finished->second;
  ASSIGN_OR_RETURN(const auto header, ReadHeader(transaction, sample_set_id));
  v1::SampleSetInfo info;
  info.set_sample_set_id(sample_set_id);
  info.set_sealed(header.sealed());
  info.set_prompt_count(header.prompt_count());
  info.set_n(1);
  info.set_trace_count(header.prompt_count());
  info.set_model_revision(header.model_revision());
  info.set_sampling_hash(header.sampling_hash());
  (*info.mutable_outcomes()->mutable_counts())["imported"] = header.prompt_count();
  return info;
}

void SampleStore::Impl::ForEachSetOf(absl::string_view trace_key,
                                     absl::FunctionRef<void(SampleSet& set, int64_t position)> visit) {
  const auto family = families_.find(trace_key.substr(0, 2 * kHashBytes));
  if (family == families_.end()) return;
  const absl::string_view prompt_hash = trace_key.substr(2 * kHashBytes, kHashBytes);
  uint32_t sample_index = 0;
  for (const char c : trace_key.substr(3 * kHashBytes)) sample_index = sample_index << 8 | static_cast<uint8_t>(c);
  for (SampleSet* set : family->second) {
    const auto position = set->Find(prompt_hash, static_cast<int32_t>(sample_index));
    if (position.has_value()) visit(*set, *position);
  }
}

absl::StatusOr<v1::SampleSetInfo> SampleStore::Impl::GetSampleSet(absl::string_view sample_set_id) {
  RETURN_IF_ERROR(CheckSampleSetId(sample_set_id));
  v1::SampleSetInfo info;
  RETURN_IF_ERROR(committer_.Run(0, [&](Transaction& transaction) -> absl::Status {
    ASSIGN_OR_RETURN(info, InfoOf(transaction, std::string(sample_set_id)));
    return absl::OkStatus();
  }));
  return info;
}

SampleStore::SampleStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SampleStore::~SampleStore() = default;

absl::StatusOr<std::unique_ptr<SampleStore>> SampleStore::Open(const SampleStoreOptions& options) {
  ASSIGN_OR_RETURN(auto database, Database::Open(options.path, options.env));
  auto impl = std::make_unique<Impl>(std::move(database), options.clock);
  RETURN_IF_ERROR(WithContext(impl->Reload(), absl::StrCat("open store ", options.path)));
  spdlog::info("store_opened path={}", options.path);
  return std::unique_ptr<SampleStore>(new SampleStore(std::move(impl)));
}

absl::Status SampleStore::PrepareSampleSet(const v1::PrepareSampleSetRequest& request, TaskFence& fence) {
  return impl_->Prepare(request, fence);
}
absl::StatusOr<v1::SampleSetInfo> SampleStore::GetSampleSet(absl::string_view sample_set_id) {
  return impl_->GetSampleSet(sample_set_id);
}
absl::StatusOr<v1::AcquireSamplesResponse> SampleStore::AcquireSamples(const v1::AcquireSamplesRequest& request,
                                                                       TaskFence& fence) {
  return impl_->Acquire(request, fence);
}
absl::StatusOr<v1::CommitTracesResponse> SampleStore::CommitTraces(const v1::CommitTracesRequest& request,
                                                                   TaskFence& fence) {
  return impl_->Commit(request, fence);
}
absl::StatusOr<v1::SavePartialsResponse> SampleStore::SavePartials(const v1::SavePartialsRequest& request,
                                                                   TaskFence& fence) {
  return impl_->SavePartials(request, fence);
}
absl::StatusOr<int64_t> SampleStore::ReleaseHolder(absl::string_view task_id, uint64_t epoch) {
  return impl_->ReleaseHolder(task_id, epoch);
}
absl::Status SampleStore::ListTraces(const v1::ListTracesRequest& request,
                                     absl::FunctionRef<absl::Status(const v1::ListTracesResponse&)> emit) {
  return impl_->ListTraces(request, emit);
}
absl::StatusOr<std::string> SampleStore::CreateManifest(const v1::CreateManifestRequest& request, TaskFence& fence) {
  return impl_->CreateManifest(request, fence);
}
absl::StatusOr<v1::Manifest> SampleStore::GetManifest(absl::string_view manifest_sha256) {
  return impl_->GetManifest(manifest_sha256);
}
absl::StatusOr<v1::GetStoreStatsResponse> SampleStore::GetStats() { return impl_->GetStats(); }
absl::StatusOr<v1::ListSampleSetsResponse> SampleStore::ListSampleSets() { return impl_->ListSampleSets(); }
absl::StatusOr<v1::ImportTracesResponse> SampleStore::ImportTraces(const v1::ImportTracesRequest& request) {
  return impl_->Import(request);
}
absl::StatusOr<v1::VerifyStoreResponse> SampleStore::Verify() { return impl_->Verify(); }

}  // namespace retort::storage
