// Traces in, dataset files out: filter, verify, deduplicate, split.
//
// Add sees every trace of the set once, in the order (prompt index, sample index); Finish writes train.jsonl and
// validation.jsonl in that order. What is dropped is counted under one cause, the first that applies: "finish_<reason>"
// (not among curate.finish_reason), "empty" (no text, or none after the reasoning), "no_answer", "wrong_answer",
// "no_reference", "duplicate", "left_out" (the shares of curate.split do not reach it). What stays is "kept". Rows wait
// in a file of the work folder, so memory holds about 150 bytes per kept trace. Not thread-safe.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "curate/answer.h"
#include "curate/split.h"
#include "retort/v1/job.pb.h"
#include "retort/v1/sample_service.pb.h"

namespace retort::curate {

struct CuratedDataset {
  std::vector<v1::TraceKey> train;       // one per line of train.jsonl
  std::vector<v1::TraceKey> validation;  // one per line of validation.jsonl
  std::map<std::string, int64_t> outcomes;
};

class Curation {
 public:
  // Writes into `folder`, which must exist and may hold nothing of value under the names rows.tmp, train.jsonl and
  // validation.jsonl. Errors: kInvalidArgument (the spec), kInternal.
  static absl::StatusOr<std::unique_ptr<Curation>> Make(const v1::CurateSpec& spec, const std::string& folder);

  // Errors: kInvalidArgument (the prompt's messages), kResourceExhausted (disk full).
  absl::Status Add(const v1::Prompt& prompt, const v1::Trace& trace);
  // Call once, last. Errors: kInvalidArgument (nothing is left to train on; says what dropped it), kResourceExhausted.
  absl::StatusOr<CuratedDataset> Finish();

 private:
  struct Kept {
    v1::TraceKey key;
    size_t prompt;         // position in prompt_hashes_
    int64_t offset_bytes;  // of its row in rows.tmp
    int64_t size_bytes;    // with the newline
  };
  Curation(const v1::CurateSpec& spec, std::string folder, Verifier verifier);

  // The cause to drop it, or "kept".
  std::string Judge(const v1::Prompt& prompt, const v1::Trace& trace);
  absl::Status WriteSplit(Split split, const std::vector<Split>& splits, std::vector<v1::TraceKey>* keys);

  const v1::CurateSpec spec_;
  const std::string folder_;
  const Verifier verifier_;
  std::ofstream rows_;
  int64_t rows_bytes_ = 0;
  std::vector<Kept> kept_;
  std::vector<std::string> prompt_hashes_;
  absl::flat_hash_map<std::string, size_t> prompt_positions_;
  absl::flat_hash_set<std::string> seen_;  // hashes of prompt and response
  std::map<std::string, int64_t> outcomes_;
};

// The cause under which a finish reason that is not wanted is counted.
std::string FinishCause(absl::string_view finish_reason);

}  // namespace retort::curate
