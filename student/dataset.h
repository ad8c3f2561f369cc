// The rows to train on, tokenized once and kept.
//
// The tokenized rows lie in a file of the cache folder that is named by everything they depend on, so that a rank that
// is started again has them at once, and ranks of one machine share the work: one tokenizes, the others wait for its
// file.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "common/rpc/artifact_client.h"
#include "model/sft_example.h"
#include "retort/v1/job.pb.h"

namespace retort {

// What became of the rows.
struct DatasetCounts {
  int64_t kept = 0;
  int64_t over_long = 0;         // more than max_length tokens
  int64_t nothing_to_train = 0;  // no label that counts
};

// Immutable; thread-safe.
class Dataset {
 public:
  Dataset() = default;

  int64_t size() const { return counts_.kept; }
  const DatasetCounts& counts() const { return counts_; }
  absl::Span<const int32_t> input_ids(int64_t sample) const { return Slice(input_ids_, sample); }
  absl::Span<const int32_t> labels(int64_t sample) const { return Slice(labels_, sample); }
  // Where the sequences begin that the row holds, in its tokens: ascending, the first 0. None sees another.
  std::vector<int64_t> sequence_starts(int64_t sample) const;
  // Labels that count: not ignored, and not a sequence's first, which nothing predicts.
  int64_t trained_tokens(int64_t sample) const { return trained_tokens_[sample]; }

  // Errors: kDataLoss (not what SaveTo wrote).
  static absl::StatusOr<Dataset> LoadFrom(const std::string& path);
  absl::Status SaveTo(const std::string& path) const;

 private:
  friend class DatasetBuilder;
  absl::Span<const int32_t> Slice(const at::Tensor& tensor, int64_t sample) const;
  std::string Digest() const;

  at::Tensor input_ids_;             // [tokens], i32
  at::Tensor labels_;                // [tokens], i32
  std::vector<int64_t> offsets_{0};  // [samples + 1]
  std::vector<int64_t> sequences_;   // where each sequence of all rows begins, in tokens
  std::vector<int64_t> trained_tokens_;
  DatasetCounts counts_;
};

// Collects examples in order.
class DatasetBuilder {
 public:
  explicit DatasetBuilder(int64_t max_length) : max_length_(max_length) {}
  void Add(const TrainingExample& example);
  Dataset Build() &&;

 private:
  const int64_t max_length_;
  std::vector<int32_t> input_ids_;
  std::vector<int32_t> labels_;
  Dataset dataset_;
};

struct DatasetOptions {
  std::string tokenizer_folder;  // read when there are texts that no cache file holds
  std::vector<std::string> add_tokens;
  std::vector<std::string> add_special_tokens;
  v1::TrainingSpec training;  // what is trained of a row
  int64_t vocab_size = 0;
  int64_t max_length = 0;
  absl::Time now = absl::Now();  // for the chat template, as in Tokenizer::Load
  std::string cache_dir;
  int threads = 1;
  std::function<void(const std::string& message)> tell;  // what it is at, now and then; may be empty
};

// The rows of `sources`, one after the other, each cut to its weight. A file's format is inferred from its first row
// where the source names none. Errors: kInvalidArgument (a row that is none, as "<path>:<line>: ..."), kNotFound,
// kUnavailable (the artifact store), kResourceExhausted (cache disk full).
absl::StatusOr<Dataset> LoadDataset(ArtifactClient& artifacts, const std::vector<v1::DatasetSource>& sources,
                                    const DatasetOptions& options);

// The same for one file that is on disk, `path`, without cache: `source` says what its rows are and names it in errors.
// `limit` is the number of rows to take. `tokenizer` may be null where all rows are token ids.
absl::Status AddRows(const std::string& path, const v1::DatasetSource& source, int64_t limit,
                     const Tokenizer* tokenizer, const DatasetOptions& options, DatasetBuilder& builder);

// Names the tokenized rows by everything they depend on: the time too, where the chat template prints it. Errors: those
// of reading the tokenizer's files.
absl::StatusOr<std::string> DatasetCacheKey(const std::vector<v1::DatasetSource>& sources,
                                            const DatasetOptions& options);

}  // namespace retort
