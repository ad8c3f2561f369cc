#include "common/rpc/sample_client.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/id.h"
#include "common/json.h"
#include "common/rpc/manifest_hash.h"

namespace retort {
namespace {

// Leaves room below the 16 MiB of a message.
constexpr size_t kSliceBytes = 4 << 20;
constexpr int kSliceItems = 2000;
constexpr int kManifestSliceKeys = 10'000;  // about 1 MiB
// The store looks up each key of a manifest; slower is taken for dead.
constexpr int kManifestKeysPerSecond = 10'000;
constexpr char kImportPrefix[] = "import/";

absl::Status VisitedTooLarge(absl::string_view what, size_t bytes) {
  return absl::InvalidArgumentError(absl::StrCat(std::string(what), ": ", bytes, " bytes do not fit in a message"));
}

}  // namespace

SampleClient::SampleClient(const std::shared_ptr<grpc::Channel>& channel, v1::TaskRef ref, RetryOptions retry)
    : ref_(std::move(ref)), retry_(std::move(retry)), stub_(v1::SampleService::NewStub(channel)) {}

absl::Status SampleClient::Prepare(const SampleSetDeclaration& set, std::vector<v1::Prompt> prompts) {
  size_t next = 0;
  do {
    v1::PrepareSampleSetRequest request;
    *request.mutable_ref() = ref_;
    request.set_sample_set_id(set.sample_set_id);
    request.set_model_revision(set.model_revision);
    request.set_sampling_hash(set.sampling_hash);
    request.set_n(set.n);
    size_t bytes = 0;
    while (next < prompts.size() && request.prompts_size() < kSliceItems && bytes < kSliceBytes) {
      prompts[next].set_prompt_index(static_cast<int64_t>(next));
      bytes += prompts[next].ByteSizeLong();
      *request.add_prompts() = std::move(prompts[next++]);
    }
    if (bytes > 3 * kSliceBytes)
      return VisitedTooLarge(absl::StrCat("prompt ", next - 1, " of sample set ", set.sample_set_id), bytes);
    request.set_seal(next == prompts.size());
    RETURN_IF_ERROR(UnaryWithRetry<v1::PrepareSampleSetResponse>(
                        "PrepareSampleSet", retry_,
                        [&](grpc::ClientContext* context, v1::PrepareSampleSetResponse* response) {
                          return stub_->PrepareSampleSet(context, request, response);
                        })
                        .status());
  } while (next < prompts.size());
  return absl::OkStatus();
}

absl::StatusOr<v1::SampleSetInfo> SampleClient::GetSampleSet(absl::string_view sample_set_id) {
  v1::GetSampleSetRequest request;
  request.set_sample_set_id(std::string(sample_set_id));
  ASSIGN_OR_RETURN(auto response,
                   UnaryWithRetry<v1::GetSampleSetResponse>(
                       "GetSampleSet", retry_, [&](grpc::ClientContext* context, v1::GetSampleSetResponse* response) {
                         return stub_->GetSampleSet(context, request, response);
                       }));
  return std::move(*response.mutable_info());
}

absl::StatusOr<v1::AcquireSamplesResponse> SampleClient::Acquire(absl::string_view sample_set_id, int limit) {
  v1::AcquireSamplesRequest request;
  *request.mutable_ref() = ref_;
  request.set_sample_set_id(std::string(sample_set_id));
  request.set_limit(limit);
  request.set_request_id(NewRequestId());
  return UnaryWithRetry<v1::AcquireSamplesResponse>(
      "AcquireSamples", retry_, [&](grpc::ClientContext* context, v1::AcquireSamplesResponse* response) {
        return stub_->AcquireSamples(context, request, response);
      });
}

absl::StatusOr<std::vector<v1::CommitOutcome>> SampleClient::Commit(std::vector<v1::CommitTracesRequest::Item> items) {
  std::vector<v1::CommitOutcome> outcomes;
  for (size_t next = 0; next < items.size();) {
    v1::CommitTracesRequest request;
    *request.mutable_ref() = ref_;
    for (size_t bytes = 0; next < items.size() && bytes < kSliceBytes && request.items_size() < kSliceItems; ++next) {
      bytes += items[next].ByteSizeLong();
      *request.add_items() = std::move(items[next]);
    }
    ASSIGN_OR_RETURN(const auto response,
                     UnaryWithRetry<v1::CommitTracesResponse>(
                         "CommitTraces", retry_, [&](grpc::ClientContext* context, v1::CommitTracesResponse* response) {
                           return stub_->CommitTraces(context, request, response);
                         }));
    if (response.outcomes_size() != request.items_size())
      return absl::DataLossError("CommitTraces: the answer does not hold one outcome per trace");
    for (const int outcome : response.outcomes()) outcomes.push_back(static_cast<v1::CommitOutcome>(outcome));
  }
  return outcomes;
}

absl::StatusOr<std::vector<v1::CommitOutcome>> SampleClient::SavePartials(
    std::vector<v1::SavePartialsRequest::Item> items) {
  std::vector<v1::CommitOutcome> outcomes;
  for (size_t next = 0; next < items.size();) {
    v1::SavePartialsRequest request;
    *request.mutable_ref() = ref_;
    for (size_t bytes = 0; next < items.size() && bytes < kSliceBytes && request.items_size() < kSliceItems; ++next) {
      bytes += items[next].ByteSizeLong();
      *request.add_items() = std::move(items[next]);
    }
    ASSIGN_OR_RETURN(const auto response,
                     UnaryWithRetry<v1::SavePartialsResponse>(
                         "SavePartials", retry_, [&](grpc::ClientContext* context, v1::SavePartialsResponse* response) {
                           return stub_->SavePartials(context, request, response);
                         }));
    if (response.outcomes_size() != request.items_size())
      return absl::DataLossError("SavePartials: the answer does not hold one outcome per partial");
    for (const int outcome : response.outcomes()) outcomes.push_back(static_cast<v1::CommitOutcome>(outcome));
  }
  return outcomes;
}

absl::Status SampleClient::ListTraces(
    absl::string_view sample_set_id,
    absl::FunctionRef<absl::Status(const v1::Prompt& prompt, const v1::Trace& trace)> visit) {
  // Where a broken stream is taken up: the prompt of the last trace seen, its samples up to `last_sample` left out.
  int64_t last_prompt = 0;
  int32_t last_sample = -1;
  absl::Status visit_status;
  for (;;) {
    bool progress = false;
    const absl::Status status = CallWithRetry(
        absl::StrCat("list traces of ", std::string(sample_set_id)), retry_, [&](absl::Time) -> absl::Status {
          v1::ListTracesRequest request;
          request.set_sample_set_id(std::string(sample_set_id));
          request.set_first_prompt_index(last_prompt);
          // No deadline for the whole: it is as long as the set. A peer that is gone is noticed by the channel's
          // keepalive.
          grpc::ClientContext context;
          const auto reader = stub_->ListTraces(&context, request);
          v1::ListTracesResponse batch;
          while (reader->Read(&batch)) {
            for (const v1::ListTracesResponse::Item& item : batch.items()) {
              const int64_t prompt = item.prompt().prompt_index();
              const int32_t sample = item.trace().key().sample_index();
              if (prompt < last_prompt || (prompt == last_prompt && sample <= last_sample)) continue;
              last_prompt = prompt;
              last_sample = sample;
              progress = true;
              visit_status = visit(item.prompt(), item.trace());
              if (visit_status.ok()) continue;
              context.TryCancel();
              reader->Finish();
              return absl::OkStatus();
            }
          }
          return FromGrpc(reader->Finish());
        });
    RETURN_IF_ERROR(visit_status);
    if (status.ok() || !IsRetryable(status) || !progress) return status;
  }
}

absl::StatusOr<std::string> SampleClient::CreateManifest(const v1::Manifest& manifest) {
  const std::string manifest_sha256 = ManifestHash(manifest);
  v1::CreateManifestResponse response;
  RETURN_IF_ERROR(CallWithRetry("CreateManifest", retry_, [&](absl::Time deadline) -> absl::Status {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(deadline + absl::Seconds(manifest.keys_size() / kManifestKeysPerSecond)));
    const auto writer = stub_->CreateManifest(&context, &response);
    v1::CreateManifestRequest request;
    *request.mutable_ref() = ref_;
    v1::Manifest& header = *request.mutable_manifest();
    header.set_manifest_sha256(manifest_sha256);
    header.set_train_count(manifest.train_count());
    header.set_validation_count(manifest.validation_count());
    if (manifest.has_train()) *header.mutable_train() = manifest.train();
    if (manifest.has_validation()) *header.mutable_validation() = manifest.validation();
    int next = 0;
    do {
      for (int i = 0; i < kManifestSliceKeys && next < manifest.keys_size(); ++i)
        *request.mutable_manifest()->add_keys() = manifest.keys(next++);
      if (!writer->Write(request)) break;  // Finish says why
      request.Clear();
    } while (next < manifest.keys_size());
    writer->WritesDone();
    return FromGrpc(writer->Finish());
  }));
  if (response.manifest_sha256() != manifest_sha256)
    return absl::DataLossError("CreateManifest: the store gave another hash than expected");
  return manifest_sha256;
}

absl::StatusOr<v1::Manifest> SampleClient::GetManifest(absl::string_view manifest_sha256) {
  v1::GetManifestRequest request;
  request.set_manifest_sha256(std::string(manifest_sha256));
  v1::Manifest manifest;
  RETURN_IF_ERROR(CallWithRetry("GetManifest", retry_, [&](absl::Time) -> absl::Status {
    // No deadline for the whole, as in ListTraces.
    grpc::ClientContext context;
    const auto reader = stub_->GetManifest(&context, request);
    manifest.Clear();
    v1::GetManifestResponse response;
    while (reader->Read(&response)) {
      v1::Manifest& slice = *response.mutable_manifest();
      if (manifest.manifest_sha256().empty()) {
        manifest = std::move(slice);
        continue;
      }
      for (v1::TraceKey& key : *slice.mutable_keys()) *manifest.add_keys() = std::move(key);
    }
    return FromGrpc(reader->Finish());
  }));
  if (ManifestHash(manifest) != manifest_sha256)
    return absl::DataLossError(absl::StrCat("manifest ", std::string(manifest_sha256), ": what came has another hash"));
  return manifest;
}

absl::StatusOr<v1::GetStoreStatsResponse> SampleClient::Stats() {
  return UnaryWithRetry<v1::GetStoreStatsResponse>(
      "GetStoreStats", retry_, [&](grpc::ClientContext* context, v1::GetStoreStatsResponse* response) {
        return stub_->GetStoreStats(context, v1::GetStoreStatsRequest(), response);
      });
}

absl::StatusOr<v1::ListSampleSetsResponse> SampleClient::ListSampleSets() {
  return UnaryWithRetry<v1::ListSampleSetsResponse>(
      "ListSampleSets", retry_, [&](grpc::ClientContext* context, v1::ListSampleSetsResponse* response) {
        return stub_->ListSampleSets(context, v1::ListSampleSetsRequest(), response);
      });
}

absl::StatusOr<v1::VerifyStoreResponse> SampleClient::Verify() {
  RetryOptions patient = retry_;
  patient.attempt = absl::Hours(1);  // reads the whole store
  patient.total = absl::Hours(1);
  return UnaryWithRetry<v1::VerifyStoreResponse>(
      "VerifyStore", patient, [&](grpc::ClientContext* context, v1::VerifyStoreResponse* response) {
        return stub_->VerifyStore(context, v1::VerifyStoreRequest(), response);
      });
}

absl::StatusOr<v1::ImportTracesResponse> SampleClient::ImportJsonl(const std::string& path, absl::string_view name) {
  if (name.empty()) return absl::InvalidArgumentError("import: the name is empty");
  v1::ImportTracesResponse total;
  v1::ImportTracesRequest request;
  request.set_sample_set_id(absl::StrCat(kImportPrefix, std::string(name)));
  int64_t rows = 0;
  size_t bytes = 0;
  const auto send = [&](bool seal) -> absl::Status {
    request.set_seal(seal);
    request.set_first_row(rows - request.rows_size());
    ASSIGN_OR_RETURN(const auto response,
                     UnaryWithRetry<v1::ImportTracesResponse>(
                         "ImportTraces", retry_, [&](grpc::ClientContext* context, v1::ImportTracesResponse* response) {
                           return stub_->ImportTraces(context, request, response);
                         }));
    total.set_stored(total.stored() + response.stored());
    total.set_already_present(total.already_present() + response.already_present());
    request.clear_rows();
    bytes = 0;
    return absl::OkStatus();
  };
  absl::flat_hash_map<std::string, int32_t> samples;  // by the hash of the prompt's messages
  RETURN_IF_ERROR(
      ForEachJsonLine(path, [&](int64_t line, absl::string_view text, const nlohmann::json& row) -> absl::Status {
        if (!row.is_object() || !row.contains("messages") || !row["messages"].is_array() || row["messages"].empty())
          return absl::InvalidArgumentError("the row has no \"messages\" array");
        nlohmann::json asked = row["messages"];
        asked.erase(asked.size() - 1);
        v1::ImportTracesRequest::Row& sent = *request.add_rows();
        sent.set_messages_json(row["messages"].dump());
        sent.set_row_json(std::string(text));
        sent.set_sample_index(samples[Sha256Hex(asked.dump())]++);
        ++rows;
        const size_t row_bytes = sent.ByteSizeLong();
        if (row_bytes > 3 * kSliceBytes) return VisitedTooLarge("the row", row_bytes);
        bytes += row_bytes;
        return bytes >= kSliceBytes || request.rows_size() >= kSliceItems ? send(false) : absl::OkStatus();
      }));
  RETURN_IF_ERROR(send(true));
  return total;
}

absl::StatusOr<int64_t> SampleClient::ExportJsonl(absl::string_view sample_set_id, const std::string& path) {
  constexpr size_t kBufferBytes = size_t{1} << 20;
  ASSIGN_OR_RETURN(AtomicFile out, AtomicFile::Create(path));
  const bool imported = absl::StartsWith(sample_set_id, kImportPrefix);
  int64_t rows = 0;
  std::string buffer;
  const auto flush = [&]() -> absl::Status {
    RETURN_IF_ERROR(out.Append(buffer));
    buffer.clear();
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(ListTraces(sample_set_id, [&](const v1::Prompt& prompt, const v1::Trace& trace) -> absl::Status {
    if (imported) {
      absl::StrAppend(&buffer, prompt.row_json(), "\n");
    } else {
      ASSIGN_OR_RETURN(const std::string row, TrainingRow(prompt, trace));
      absl::StrAppend(&buffer, row, "\n");
    }
    ++rows;
    return buffer.size() < kBufferBytes ? absl::OkStatus() : flush();
  }));
  RETURN_IF_ERROR(flush());
  RETURN_IF_ERROR(out.Commit());
  return rows;
}

absl::StatusOr<std::string> TrainingRow(const v1::Prompt& prompt, const v1::Trace& trace) {
  ASSIGN_OR_RETURN(const nlohmann::json checked,
                   ParseJson(prompt.messages_json(), absl::StrCat("messages of prompt ", prompt.prompt_index())));
  if (!checked.is_array()) {
    return absl::InvalidArgumentError(absl::StrCat("messages of prompt ", prompt.prompt_index(), ": are not an array"));
  }
  const std::string content = trace.reasoning().empty()
                                  ? trace.text()
                                  : absl::StrCat("<think>\n", trace.reasoning(), "\n</think>\n\n", trace.text());
  nlohmann::ordered_json row;
  row["messages"] = nlohmann::ordered_json::parse(prompt.messages_json());  // again, for the order of its keys
  row["messages"].push_back({{"role", "assistant"}, {"content", content}});
  // Text that is not UTF-8 (a token cut in the middle) is replaced, not refused: JSON has no way to hold it.
  return row.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace retort
