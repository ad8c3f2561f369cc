#include <google/protobuf/util/time_util.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "storage/sample_store_impl.h"

namespace retort::storage {

// A trace as it will be written; made on the caller's thread, so that the committer only compares and copies.
struct SampleStore::Impl::PreparedTrace {
  std::string key;
  uint64_t lease_epoch;
  std::string bytes;
  v1::OutcomeRecord outcome;
};

absl::StatusOr<v1::CommitTracesResponse> SampleStore::Impl::Commit(const v1::CommitTracesRequest& request,
                                                                   TaskFence& fence) {
  RETURN_IF_ERROR(CheckTaskRef(request.ref()));
  std::vector<PreparedTrace> traces;
  size_t total_bytes = 0;
  const auto now = google::protobuf::util::TimeUtil::NanosecondsToTimestamp(absl::ToUnixNanos(clock_->Now()));
  for (int i = 0; i < request.items_size(); ++i) {
    const v1::CommitTracesRequest::Item& item = request.items(i);
    const std::string where = absl::StrCat("items[", i, "].trace");
    PreparedTrace& trace = traces.emplace_back();
    absl::StatusOr<std::string> key = EncodeTraceKey(item.trace().key());
    if (!key.ok()) return WithContext(key.status(), where);
    if (item.trace().ByteSizeLong() > kMaxTraceBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": ", item.trace().ByteSizeLong(), " bytes, at most ", kMaxTraceBytes, " are stored"));
    }
    if (item.trace().logprobs_size() != 0 && item.trace().logprobs_size() != item.trace().token_ids_size())
      return absl::InvalidArgumentError(absl::StrCat(where, ".logprobs: must be one per token id"));
    trace.key = *std::move(key);
    trace.lease_epoch = item.lease_epoch();
    if (item.trace().has_created_at()) {
      trace.bytes = item.trace().SerializeAsString();
    } else {
      v1::Trace stamped = item.trace();
      *stamped.mutable_created_at() = now;
      trace.bytes = stamped.SerializeAsString();
    }
    trace.outcome.set_content_sha256(TraceContentHash(item.trace()));
    trace.outcome.set_finish_reason(item.trace().finish_reason());
    total_bytes += trace.bytes.size() + 512;
  }

  v1::CommitTracesResponse response;
  RETURN_IF_ERROR(committer_.Run(total_bytes, [&](Transaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(EnsureLoaded());
    ASSIGN_OR_RETURN(const bool fenced, IsFenced(fence, request.ref()));
    absl::Status error;
    for (const PreparedTrace& trace : traces) {
      response.add_outcomes(ApplyCommit(transaction, trace, request.ref(), fenced, &error));
      if (!error.ok()) {
        transaction.Abandon();
        return error;
      }
    }
    return absl::OkStatus();
  }));
  return response;
}

v1::CommitOutcome SampleStore::Impl::ApplyCommit(Transaction& transaction, const PreparedTrace& trace,
                                                 const v1::TaskRef& ref, bool fenced, absl::Status* error) {
  const Lease* lease = leases_.Find(trace.key);
  const bool holds = !fenced && lease != nullptr && lease->lease_epoch == trace.lease_epoch &&
                     lease->holder.task_id() == ref.task_id() && lease->holder.epoch() == ref.epoch();
  if (!holds) {
    const auto stored = transaction.Get(database_->outcomes(), trace.key);
    if (absl::IsNotFound(stored.status())) return v1::COMMIT_OUTCOME_FENCED;
    const auto outcome = stored.ok() ? ParseRecord<v1::OutcomeRecord>(*stored, "outcomes")
                                     : absl::StatusOr<v1::OutcomeRecord>(stored.status());
    if (!outcome.ok()) {
      *error = outcome.status();
      return v1::COMMIT_OUTCOME_UNSPECIFIED;
    }
    return outcome->content_sha256() == trace.outcome.content_sha256() ? v1::COMMIT_OUTCOME_REPLAYED
                                                                       : v1::COMMIT_OUTCOME_FENCED;
  }
  // A leased key has no trace, and none can get one but through its lease: it need not be looked for.
  transaction.Put(database_->traces(), trace.key, trace.bytes);
  transaction.Put(database_->outcomes(), trace.key, trace.outcome.SerializeAsString());
  transaction.Delete(database_->leases(), trace.key);
  transaction.Delete(database_->partials(), trace.key);
  leases_.Remove(trace.key);
  std::vector<SampleSet*> touched;
  ForEachSetOf(trace.key, [&](SampleSet& set, int64_t position) {
    set.AddLeased(-1);
    set.MarkStored(position, trace.outcome.finish_reason(), /*reused=*/false);
    touched.push_back(&set);
  });
  for (SampleSet* set : touched) RetireIfFinished(set);
  return v1::COMMIT_OUTCOME_STORED;
}

absl::StatusOr<v1::SavePartialsResponse> SampleStore::Impl::SavePartials(const v1::SavePartialsRequest& request,
                                                                         TaskFence& fence) {
  RETURN_IF_ERROR(CheckTaskRef(request.ref()));
  std::vector<std::string> keys;
  for (int i = 0; i < request.items_size(); ++i) {
    const v1::PartialTrace& partial = request.items(i).partial();
    absl::StatusOr<std::string> key = EncodeTraceKey(partial.key());
    if (!key.ok()) return WithContext(key.status(), absl::StrCat("items[", i, "].partial"));
    if (partial.ByteSizeLong() > kMaxTraceBytes)
      return absl::InvalidArgumentError(absl::StrCat("items[", i, "].partial: over ", kMaxTraceBytes, " bytes"));
    keys.push_back(*std::move(key));
  }
  v1::SavePartialsResponse response;
  RETURN_IF_ERROR(committer_.Run(request.ByteSizeLong(), [&](Transaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(EnsureLoaded());
    ASSIGN_OR_RETURN(const bool fenced, IsFenced(fence, request.ref()));
    for (int i = 0; i < request.items_size(); ++i) {
      const v1::SavePartialsRequest::Item& item = request.items(i);
      Lease* lease = leases_.Find(keys[static_cast<size_t>(i)]);
      if (fenced || lease == nullptr || lease->lease_epoch != item.lease_epoch() ||
          lease->holder.task_id() != request.ref().task_id() || lease->holder.epoch() != request.ref().epoch()) {
        response.add_outcomes(v1::COMMIT_OUTCOME_FENCED);
        continue;
      }
      const auto tokens = static_cast<size_t>(item.partial().token_ids_size());
      if (tokens <= lease->partial_tokens) {
        response.add_outcomes(v1::COMMIT_OUTCOME_REPLAYED);
        continue;
      }
      lease->partial_tokens = tokens;
      transaction.Put(database_->partials(), keys[static_cast<size_t>(i)], item.partial().SerializeAsString());
      response.add_outcomes(v1::COMMIT_OUTCOME_STORED);
    }
    return absl::OkStatus();
  }));
  return response;
}

}  // namespace retort::storage
