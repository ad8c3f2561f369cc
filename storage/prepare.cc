#include <spdlog/spdlog.h>

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "storage/sample_store_impl.h"

namespace retort::storage {
namespace {

absl::Status Validate(const v1::PrepareSampleSetRequest& request) {
  RETURN_IF_ERROR(CheckTaskRef(request.ref()));
  RETURN_IF_ERROR(CheckSampleSetId(request.sample_set_id()));
  if (request.model_revision().size() != kHashBytes)
    return absl::InvalidArgumentError("model_revision: must be 32 bytes");
  if (request.sampling_hash().size() != kHashBytes)
    return absl::InvalidArgumentError("sampling_hash: must be 32 bytes");
  if (request.n() < 1 || request.n() > kMaxSamplesPerPrompt)
    return absl::InvalidArgumentError(absl::StrCat("n: is ", request.n(), ", must be 1 to ", kMaxSamplesPerPrompt));
  for (int i = 0; i < request.prompts_size(); ++i) {
    const v1::Prompt& prompt = request.prompts(i);
    const std::string where = absl::StrCat("prompts[", i, "]");
    if (prompt.prompt_hash().size() != kHashBytes)
      return absl::InvalidArgumentError(absl::StrCat(where, ".prompt_hash: must be 32 bytes"));
    if (prompt.prompt_index() < 0 || prompt.prompt_index() != request.prompts(0).prompt_index() + i)
      return absl::InvalidArgumentError(absl::StrCat(where, ".prompt_index: must go up by one within a slice"));
    if (prompt.ByteSizeLong() > kMaxPromptBytes) {
      return absl::InvalidArgumentError(absl::StrCat("prompt ", prompt.prompt_index(), ": ", prompt.ByteSizeLong(),
                                                     " bytes, at most ", kMaxPromptBytes, " are stored"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status SampleStore::Impl::Prepare(const v1::PrepareSampleSetRequest& request, TaskFence& fence) {
  RETURN_IF_ERROR(Validate(request));
  return committer_.Run(request.ByteSizeLong(), [&](Transaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(fence.Check(request.ref()));
    return WithContext(ApplyPrepare(transaction, request),
                       absl::StrCat("sample set \"", request.sample_set_id(), "\""));
  });
}

absl::Status SampleStore::Impl::ApplyPrepare(Transaction& transaction, const v1::PrepareSampleSetRequest& request) {
  const std::string& id = request.sample_set_id();
  absl::StatusOr<SampleSet*> found = FindSet(transaction, id);
  v1::SampleSetRecord header;
  if (absl::IsNotFound(found.status())) {
    header.set_model_revision(request.model_revision());
    header.set_sampling_hash(request.sampling_hash());
    header.set_n(request.n());
  } else if (!found.ok()) {
    return found.status();
  } else {
    ASSIGN_OR_RETURN(header, ReadHeader(transaction, id));
  }
  if (header.imported() || header.model_revision() != request.model_revision() ||
      header.sampling_hash() != request.sampling_hash() || header.n() != request.n()) {
    return absl::AlreadyExistsError(
        "exists with another model, sampling or number of samples; the model's files must not change while a job runs");
  }

  const int64_t count = header.prompt_count();
  const int64_t first = request.prompts_size() == 0 ? count : request.prompts(0).prompt_index();
  const int64_t end = first + request.prompts_size();
  if (first > count) {
    return absl::OutOfRangeError(
        absl::StrCat("a slice from prompt ", first, " on, but only ", count, " are known; send slices in order"));
  }
  RETURN_IF_ERROR(CompareWithStored(transaction, request, count));
  if (header.sealed() && end > count)
    return absl::AlreadyExistsError(absl::StrCat("is sealed with ", count, " prompts; more came"));
  if (request.seal() && end < count)
    return absl::AlreadyExistsError(absl::StrCat("has ", count, " prompts already, cannot be sealed with ", end));
  if (end == count && (header.sealed() || !request.seal()) && found.ok()) return absl::OkStatus();

  SampleSet* set = found.ok() ? *found : Adopt(std::make_unique<SampleSet>(id, header));
  if (end > count) {
    const absl::Status added = AddPrompts(transaction, request, count, set);
    if (!added.ok()) {
      transaction.Abandon();  // the set may be new in memory
      return added;
    }
  }
  if (request.seal()) set->Seal();
  transaction.Put(database_->sample_sets(), EncodeSetHeaderKey(id), set->record().SerializeAsString());
  if (request.seal()) {
    spdlog::info("sample_set_sealed id={} prompts={} n={} remaining={}", id, end, header.n(), set->RemainingCount());
  }
  RetireIfFinished(set);
  return absl::OkStatus();
}

absl::Status SampleStore::Impl::CompareWithStored(Transaction& transaction, const v1::PrepareSampleSetRequest& request,
                                                  int64_t count) {
  for (const v1::Prompt& prompt : request.prompts()) {
    if (prompt.prompt_index() >= count) break;
    ASSIGN_OR_RETURN(
        const std::string bytes,
        transaction.Get(database_->prompts(), EncodePromptKey(request.sample_set_id(), prompt.prompt_index())));
    ASSIGN_OR_RETURN(const auto stored, ParseRecord<v1::PromptRecord>(bytes, "prompts"));
    if (stored.prompt().SerializeAsString() != prompt.SerializeAsString()) {
      return absl::AlreadyExistsError(
          absl::StrCat("holds another prompt ", prompt.prompt_index(),
                       "; all replicas must read the same prompt files, tokenizer and chat template"));
    }
  }
  return absl::OkStatus();
}

absl::Status SampleStore::Impl::AddPrompts(Transaction& transaction, const v1::PrepareSampleSetRequest& request,
                                           int64_t first_new, SampleSet* set) {
  // Reads first: nothing in memory changes when one fails.
  const int first_in_request = static_cast<int>(first_new - request.prompts(0).prompt_index());
  const int new_prompts = request.prompts_size() - first_in_request;
  v1::SampleSliceRecord slice;
  slice.mutable_reused()->assign((static_cast<size_t>(new_prompts) * request.n() + 7) / 8, '\0');
  size_t bit = 0;
  for (int i = first_in_request; i < request.prompts_size(); ++i) {
    slice.mutable_prompt_hashes()->append(request.prompts(i).prompt_hash());
    for (int32_t sample = 0; sample < request.n(); ++sample, ++bit) {
      const auto outcome = transaction.Get(
          database_->outcomes(),
          EncodeTraceKey(request.model_revision(), request.sampling_hash(), request.prompts(i).prompt_hash(), sample));
      if (!outcome.ok() && !absl::IsNotFound(outcome.status())) return outcome.status();
      if (outcome.ok()) (*slice.mutable_reused())[bit / 8] |= static_cast<char>(1 << (bit % 8));
    }
  }

  bit = 0;
  for (int i = first_in_request; i < request.prompts_size(); ++i) {
    v1::PromptRecord record;
    *record.mutable_prompt() = request.prompts(i);
    transaction.Put(database_->prompts(), EncodePromptKey(set->id(), request.prompts(i).prompt_index()),
                    record.SerializeAsString());
    const auto index = set->AddPrompt(request.prompts(i).prompt_hash());
    for (int32_t sample = 0; sample < request.n(); ++sample, ++bit) {
      if (!index.has_value()) continue;
      const int64_t position = *index * request.n() + sample;
      if (slice.reused()[bit / 8] >> (bit % 8) & 1) {
        set->MarkStored(position, "", /*reused=*/true);
      } else if (leases_.Find(set->KeyAt(position)) != nullptr) {
        set->AddLeased(1);
      } else {
        set->Enqueue(position, /*first=*/false);
      }
    }
  }
  transaction.Put(database_->sample_sets(), EncodeSliceKey(set->id(), first_new), slice.SerializeAsString());
  return absl::OkStatus();
}

}  // namespace retort::storage
