#include <google/protobuf/util/time_util.h>
#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/hash.h"
#include "common/json.h"
#include "common/status.h"
#include "storage/sample_store_impl.h"

namespace retort::storage {
namespace {

constexpr char kImportPrefix[] = "import/";

// Splits a row into what was asked and what was answered.
absl::StatusOr<std::pair<v1::PromptRecord, v1::Trace>> ToRecords(const v1::ImportTracesRequest::Row& row,
                                                                 int64_t index) {
  const std::string where = absl::StrCat("row ", index);
  if (row.sample_index() < 0 || row.sample_index() >= kMaxSamplesPerPrompt)
    return absl::InvalidArgumentError(absl::StrCat(where, ".sample_index: must be 0 to ", kMaxSamplesPerPrompt - 1));
  ASSIGN_OR_RETURN(nlohmann::json messages, ParseJson(row.messages_json(), where + ".messages"));
  if (!messages.is_array() || messages.empty())
    return absl::InvalidArgumentError(absl::StrCat(where, ".messages: must be an array of messages"));
  const nlohmann::json last = messages.back();
  if (!last.is_object() || last.value("role", nlohmann::json()) != "assistant" || !last.contains("content") ||
      !last["content"].is_string()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ".messages: the last one must be {\"role\": \"assistant\", \"content\": \"...\"}"));
  }
  messages.erase(messages.size() - 1);

  v1::PromptRecord prompt;
  prompt.set_sample_index(row.sample_index());
  prompt.mutable_prompt()->set_prompt_index(index);
  prompt.mutable_prompt()->set_row_json(row.row_json());
  prompt.mutable_prompt()->set_messages_json(messages.dump());
  prompt.mutable_prompt()->set_prompt_hash(ToBytes(Sha256Of(prompt.prompt().messages_json())));
  v1::Trace trace;
  trace.set_text(last["content"].get<std::string>());
  trace.set_finish_reason("stop");
  if (prompt.ByteSizeLong() > kMaxPromptBytes)
    return absl::InvalidArgumentError(absl::StrCat(where, ": the row is over ", kMaxPromptBytes, " bytes"));
  if (trace.ByteSizeLong() > kMaxTraceBytes)
    return absl::InvalidArgumentError(absl::StrCat(where, ": the answer is over ", kMaxTraceBytes, " bytes"));
  return std::make_pair(std::move(prompt), std::move(trace));
}

}  // namespace

absl::StatusOr<v1::ImportTracesResponse> SampleStore::Impl::Import(const v1::ImportTracesRequest& request) {
  RETURN_IF_ERROR(CheckSampleSetId(request.sample_set_id()));
  if (!absl::StartsWith(request.sample_set_id(), kImportPrefix) || request.sample_set_id() == kImportPrefix)
    return absl::InvalidArgumentError("sample_set_id: must be \"import/<name>\"");
  if (request.first_row() < 0) return absl::InvalidArgumentError("first_row: must not be negative");

  v1::TraceKey key;
  key.set_model_revision(ToBytes(Sha256Of(request.sample_set_id())));
  key.set_sampling_hash(ToBytes(Sha256Of("import")));
  std::vector<std::pair<v1::PromptRecord, v1::Trace>> rows;
  for (const v1::ImportTracesRequest::Row& row : request.rows()) {
    ASSIGN_OR_RETURN(auto records, ToRecords(row, request.first_row() + static_cast<int64_t>(rows.size())));
    key.set_prompt_hash(records.first.prompt().prompt_hash());
    key.set_sample_index(records.first.sample_index());
    *records.second.mutable_key() = key;
    *records.second.mutable_created_at() =
        google::protobuf::util::TimeUtil::NanosecondsToTimestamp(absl::ToUnixNanos(clock_->Now()));
    rows.push_back(std::move(records));
  }
  v1::ImportTracesResponse response;
  RETURN_IF_ERROR(committer_.Run(2 * request.ByteSizeLong(), [&](Transaction& transaction) -> absl::Status {
    return WithContext(ApplyImport(transaction, request, rows, &response),
                       absl::StrCat("import to \"", request.sample_set_id(), "\""));
  }));
  return response;
}

absl::Status SampleStore::Impl::ApplyImport(Transaction& transaction, const v1::ImportTracesRequest& request,
                                            const std::vector<std::pair<v1::PromptRecord, v1::Trace>>& rows,
                                            v1::ImportTracesResponse* response) {
  const std::string& id = request.sample_set_id();
  absl::StatusOr<v1::SampleSetRecord> header = ReadHeader(transaction, id);
  if (absl::IsNotFound(header.status())) {
    header = v1::SampleSetRecord();
    header->set_model_revision(ToBytes(Sha256Of(id)));
    header->set_sampling_hash(ToBytes(Sha256Of("import")));
    header->set_n(1);
    header->set_imported(true);
  } else if (!header.ok()) {
    return header.status();
  }
  if (!header->imported()) return absl::AlreadyExistsError("a sample set of that name holds generated traces");
  const int64_t end = request.first_row() + static_cast<int64_t>(rows.size());
  if (request.first_row() > header->prompt_count()) {
    return absl::OutOfRangeError(
        absl::StrCat("rows from ", request.first_row(), " on, but only ", header->prompt_count(), " are known"));
  }
  if (header->sealed() && end > header->prompt_count()) {
    return absl::AlreadyExistsError(
        absl::StrCat("is complete with ", header->prompt_count(), " rows; choose another name for other rows"));
  }
  if (request.seal() && end < header->prompt_count())
    return absl::AlreadyExistsError(absl::StrCat("has ", header->prompt_count(), " rows already, not ", end));

  for (const auto& [prompt, trace] : rows) {
    const std::string prompt_key = EncodePromptKey(id, prompt.prompt().prompt_index());
    if (prompt.prompt().prompt_index() < header->prompt_count()) {
      ASSIGN_OR_RETURN(const std::string stored, transaction.Get(database_->prompts(), prompt_key));
      if (stored != prompt.SerializeAsString()) {
        return absl::AlreadyExistsError(
            absl::StrCat("holds another row ", prompt.prompt().prompt_index(), "; choose another name for other rows"));
      }
      response->set_already_present(response->already_present() + 1);
      continue;
    }
    ASSIGN_OR_RETURN(const std::string trace_key, EncodeTraceKey(trace.key()));
    if (transaction.Get(database_->outcomes(), trace_key).ok()) {
      return absl::InvalidArgumentError(absl::StrCat("row ", prompt.prompt().prompt_index(),
                                                     ": sample_index was used by an earlier row with the same prompt"));
    }
    v1::OutcomeRecord outcome;
    outcome.set_content_sha256(TraceContentHash(trace));
    outcome.set_finish_reason(trace.finish_reason());
    transaction.Put(database_->prompts(), prompt_key, prompt.SerializeAsString());
    transaction.Put(database_->traces(), trace_key, trace.SerializeAsString());
    transaction.Put(database_->outcomes(), trace_key, outcome.SerializeAsString());
    response->set_stored(response->stored() + 1);
  }
  header->set_prompt_count(std::max(header->prompt_count(), end));
  if (request.seal()) header->set_sealed(true);
  transaction.Put(database_->sample_sets(), EncodeSetHeaderKey(id), header->SerializeAsString());
  return absl::OkStatus();
}

}  // namespace retort::storage
