#include <spdlog/spdlog.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "storage/sample_store_impl.h"

namespace retort::storage {
namespace {

constexpr size_t kMaxAnswerBytes = 8 << 20;
constexpr size_t kMaxRequestIdBytes = 128;

}  // namespace

absl::StatusOr<bool> SampleStore::Impl::IsFenced(TaskFence& fence, const v1::TaskRef& ref) {
  const absl::Status status = fence.Check(ref);
  if (absl::IsFailedPrecondition(status)) return true;
  if (!status.ok()) return status;
  return false;
}

absl::StatusOr<v1::AcquireSamplesResponse> SampleStore::Impl::Acquire(const v1::AcquireSamplesRequest& request,
                                                                      TaskFence& fence) {
  RETURN_IF_ERROR(CheckTaskRef(request.ref()));
  RETURN_IF_ERROR(CheckSampleSetId(request.sample_set_id()));
  if (request.limit() < 0) return absl::InvalidArgumentError("limit: must not be negative");
  if (request.request_id().size() > kMaxRequestIdBytes)
    return absl::InvalidArgumentError(absl::StrCat("request_id: over ", kMaxRequestIdBytes, " bytes"));
  const int limit = std::min(request.limit(), kMaxAcquire);
  v1::AcquireSamplesResponse response;
  RETURN_IF_ERROR(committer_.Run(static_cast<size_t>(limit) * 512, [&](Transaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(fence.Check(request.ref()));
    ASSIGN_OR_RETURN(response, ApplyAcquire(transaction, request, limit, fence));
    return absl::OkStatus();
  }));
  return response;
}

absl::StatusOr<v1::LeasedSample> SampleStore::Impl::ReadSample(Transaction& transaction, const SampleSet& set,
                                                               int64_t position) {
  v1::LeasedSample sample;
  const std::string key = set.KeyAt(position);
  ASSIGN_OR_RETURN(*sample.mutable_key(), DecodeTraceKey(key));
  sample.set_prompt_index(set.PromptIndexAt(position));
  ASSIGN_OR_RETURN(const std::string prompt_bytes,
                   transaction.Get(database_->prompts(), EncodePromptKey(set.id(), sample.prompt_index())));
  ASSIGN_OR_RETURN(auto record, ParseRecord<v1::PromptRecord>(prompt_bytes, "prompts"));
  *sample.mutable_prompt() = std::move(*record.mutable_prompt());
  const auto partial_bytes = transaction.Get(database_->partials(), key);
  if (partial_bytes.ok()) {
    ASSIGN_OR_RETURN(const auto partial, ParseRecord<v1::PartialTrace>(*partial_bytes, "partials"));
    *sample.mutable_partial_token_ids() = partial.token_ids();
  } else if (!absl::IsNotFound(partial_bytes.status())) {
    return partial_bytes.status();
  }
  return sample;
}

absl::StatusOr<v1::AcquireSamplesResponse> SampleStore::Impl::ApplyAcquire(Transaction& transaction,
                                                                           const v1::AcquireSamplesRequest& request,
                                                                           int limit, TaskFence& fence) {
  ASSIGN_OR_RETURN(SampleSet* const set, FindSet(transaction, request.sample_set_id()));
  v1::AcquireSamplesResponse response;
  if (set == nullptr) return response;  // finished
  if (!set->record().sealed()) {
    return absl::AbortedError(
        absl::StrCat("sample set \"", request.sample_set_id(), "\": is not sealed yet; prepare it to its end first"));
  }
  response.set_remaining(set->RemainingCount());

  if (!request.request_id().empty()) {
    for (const std::string& key : leases_.KeysOf(request.ref().task_id(), request.ref().epoch())) {
      const Lease* lease = leases_.Find(key);
      if (lease->request_id != request.request_id()) continue;
      ASSIGN_OR_RETURN(const auto trace_key, DecodeTraceKey(key));
      const auto position =
          key.starts_with(set->Family()) ? set->Find(trace_key.prompt_hash(), trace_key.sample_index()) : std::nullopt;
      if (!position.has_value()) continue;
      ASSIGN_OR_RETURN(v1::LeasedSample sample, ReadSample(transaction, *set, *position));
      sample.set_lease_epoch(lease->lease_epoch);
      *response.add_samples() = std::move(sample);
    }
    if (response.samples_size() > 0) return response;
  }

  std::vector<int64_t> positions;
  size_t answer_bytes = 0;
  const auto take = [&]() -> absl::Status {
    while (response.samples_size() < limit && answer_bytes < kMaxAnswerBytes) {
      const auto position = set->Dequeue();
      if (!position.has_value()) break;
      if (set->IsStored(*position) || leases_.Find(set->KeyAt(*position)) != nullptr) continue;
      absl::StatusOr<v1::LeasedSample> sample = ReadSample(transaction, *set, *position);
      positions.push_back(*position);
      if (!sample.ok()) return sample.status();
      answer_bytes += sample->ByteSizeLong();
      *response.add_samples() = *std::move(sample);
    }
    return absl::OkStatus();
  };
  absl::Status status = take();
  if (status.ok() && response.samples_size() < limit && set->leased_count() > 0 &&
      ReleaseFencedHolders(transaction, fence) > 0) {
    status = take();
  }
  if (!status.ok()) {
    transaction.Abandon();
    return status;
  }

  for (size_t i = 0; i < positions.size(); ++i) {
    v1::LeasedSample& sample = *response.mutable_samples(static_cast<int>(i));
    sample.set_lease_epoch(next_lease_epoch_++);
    v1::LeaseRecord record;
    *record.mutable_holder() = request.ref();
    record.set_lease_epoch(sample.lease_epoch());
    record.set_request_id(request.request_id());
    const std::string key = set->KeyAt(positions[i]);
    transaction.Put(database_->leases(), key, record.SerializeAsString());
    leases_.Add(key, Lease{record.holder(), record.lease_epoch(), record.request_id()});
    ForEachSetOf(key, [](SampleSet& other, int64_t) { other.AddLeased(1); });
  }
  if (!positions.empty()) transaction.Put(database_->leases(), kNextLeaseEpochKey, EncodeU64(next_lease_epoch_));
  return response;
}

int64_t SampleStore::Impl::ReleaseFencedHolders(Transaction& transaction, TaskFence& fence) {
  int64_t released = 0;
  for (const v1::TaskRef& holder : leases_.Holders()) {
    const absl::StatusOr<bool> fenced = IsFenced(fence, holder);
    if (fenced.ok() && *fenced) released += ApplyRelease(transaction, holder.task_id(), holder.epoch());
  }
  return released;
}

int64_t SampleStore::Impl::ApplyRelease(Transaction& transaction, absl::string_view task_id, uint64_t epoch) {
  const std::vector<std::string> keys = leases_.KeysOf(task_id, epoch);
  // Backwards, so that at the head of the line they stand in order.
  for (auto key = keys.rbegin(); key != keys.rend(); ++key) {
    transaction.Delete(database_->leases(), *key);
    leases_.Remove(*key);
    ForEachSetOf(*key, [](SampleSet& set, int64_t position) {
      set.AddLeased(-1);
      set.Enqueue(position, /*first=*/true);
    });
  }
  if (!keys.empty()) {
    spdlog::info("sample_leases_released task_id={} epoch={} keys={}", std::string(task_id), epoch, keys.size());
  }
  return static_cast<int64_t>(keys.size());
}

absl::StatusOr<int64_t> SampleStore::Impl::ReleaseHolder(absl::string_view task_id, uint64_t epoch) {
  int64_t released = 0;
  RETURN_IF_ERROR(committer_.Run(0, [&](Transaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(EnsureLoaded());
    released = ApplyRelease(transaction, task_id, epoch);
    return absl::OkStatus();
  }));
  return released;
}

}  // namespace retort::storage
