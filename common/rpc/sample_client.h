// The sample store as teacher, curate and distctl use it: every call outlives a restart of the coordinator.
//
// Thread-safe. A fenced caller gets kFailedPrecondition, and from CommitTraces and SavePartials FENCED for each key.
#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/rpc/retry.h"
#include "retort/v1/sample_service.grpc.pb.h"

namespace retort {

// What a sample set is, but its prompts.
struct SampleSetDeclaration {
  std::string sample_set_id;
  std::string model_revision;  // 32 bytes
  std::string sampling_hash;   // 32 bytes
  int n = 1;                   // samples per prompt
};

class SampleClient {
 public:
  // `ref` goes with every request that a task may make; users' calls ignore it.
  SampleClient(const std::shared_ptr<grpc::Channel>& channel, v1::TaskRef ref, RetryOptions retry = {});

  // Declares and seals the whole set, in slices that fit in a message; fills prompt_index. Every replica calls it;
  // replay is harmless. Errors: kAlreadyExists (the set was made with other prompts, model or sampling),
  // kInvalidArgument (a prompt is too large).
  absl::Status Prepare(const SampleSetDeclaration& set, std::vector<v1::Prompt> prompts);
  absl::StatusOr<v1::SampleSetInfo> GetSampleSet(absl::string_view sample_set_id);

  // Leases up to `limit` keys; a lost answer is got again, not leaked.
  absl::StatusOr<v1::AcquireSamplesResponse> Acquire(absl::string_view sample_set_id, int limit);
  // One outcome per item, in order. Sends as many requests as the size of a message asks for.
  absl::StatusOr<std::vector<v1::CommitOutcome>> Commit(std::vector<v1::CommitTracesRequest::Item> items);
  absl::StatusOr<std::vector<v1::CommitOutcome>> SavePartials(std::vector<v1::SavePartialsRequest::Item> items);

  // Calls `visit` with each trace of the set once, in the order (prompt index, sample index). A stream that breaks is
  // taken up where it stopped.
  absl::Status ListTraces(absl::string_view sample_set_id,
                          absl::FunctionRef<absl::Status(const v1::Prompt& prompt, const v1::Trace& trace)> visit);

  // Both send any number of keys, in slices, and check the hash of the whole. CreateManifest returns it.
  absl::StatusOr<std::string> CreateManifest(const v1::Manifest& manifest);
  absl::StatusOr<v1::Manifest> GetManifest(absl::string_view manifest_sha256);

  absl::StatusOr<v1::GetStoreStatsResponse> Stats();
  absl::StatusOr<v1::ListSampleSetsResponse> ListSampleSets();
  absl::StatusOr<v1::VerifyStoreResponse> Verify();

  // Imports a JSONL file of {"messages": [..., {"role": "assistant", ...}]} rows as the set "import/<name>" and seals
  // it. The lines are kept as they are. Errors: kInvalidArgument ("<path>:<line>: ..."), kAlreadyExists (that name
  // holds other rows).
  absl::StatusOr<v1::ImportTracesResponse> ImportJsonl(const std::string& path, absl::string_view name);
  // Writes a set as JSONL, atomically: imported rows byte for byte as they were, others as {"messages": [...]}. Returns
  // the number of rows.
  absl::StatusOr<int64_t> ExportJsonl(absl::string_view sample_set_id, const std::string& path);

 private:
  const v1::TaskRef ref_;
  const RetryOptions retry_;
  const std::unique_ptr<v1::SampleService::Stub> stub_;
};

// The row that training reads: the prompt's messages and the assistant's turn, as {"messages": [...]} on one line.
// Reasoning that an endpoint gave apart is put before the text as "<think>\n...\n</think>\n\n". Errors:
// kInvalidArgument (messages_json is not an array of messages).
absl::StatusOr<std::string> TrainingRow(const v1::Prompt& prompt, const v1::Trace& trace);

}  // namespace retort
