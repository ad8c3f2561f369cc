#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/json.h"
#include "common/status.h"
#include "model/tokenizer.h"
#include "model/training_rows.h"
#include "student/dataset.h"
#include "student/file_lock.h"

namespace retort {
namespace {

// Part of a cache file's name: raise it when the same rows would be tokenized differently.
constexpr absl::string_view kTokenizationVersion = "retort tokenized rows 4";
constexpr size_t kRowsAtOnce = 4096;

struct Row {
  int64_t line = 0;
  std::string text;
};

absl::StatusOr<TrainingExample> ToExample(const std::string& text, const SftOptions& sft, const Tokenizer* tokenizer,
                                          int64_t vocab_size) {
  // Parsed again, for the order of its keys, which templates may print.
  const auto row = nlohmann::ordered_json::parse(text);
  if (tokenizer == nullptr) return ExampleFromTokens(row, vocab_size);
  ASSIGN_OR_RETURN(TrainingExample example, ExampleFromRow(*tokenizer, row, sft, vocab_size));
  for (const int32_t id : example.input_ids) {
    if (id < vocab_size) continue;
    const absl::StatusOr<std::string> token = tokenizer->Decode({id}, false);
    return absl::InvalidArgumentError(
        absl::StrCat("holds ", token.ok() ? *token : "a token", ", which the tokenizer makes token ", id,
                     ", but the model has only ", vocab_size,
                     " (vocab_size in config.json); resize its embeddings, or use the tokenizer it came with"));
  }
  return example;
}

// Tokenizes on several threads; the examples come in the order of the rows.
absl::Status AddBatch(const std::vector<Row>& rows, const std::string& shown_path, const SftOptions& sft,
                      const Tokenizer* tokenizer, const DatasetOptions& options, DatasetBuilder& builder) {
  std::vector<absl::StatusOr<TrainingExample>> examples(rows.size(), absl::UnknownError(""));
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t i = next++; i < rows.size(); i = next++) {
      examples[i] = ToExample(rows[i].text, sft, tokenizer, options.vocab_size);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < options.threads; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < rows.size(); ++i) {
    if (!examples[i].ok()) {
      return WithContext(examples[i].status(), absl::StrCat(shown_path, ":", rows[i].line));
    }
    builder.Add(*examples[i]);
  }
  return absl::OkStatus();
}

// Rows of a file that are not blank.
absl::StatusOr<int64_t> CountRows(const std::string& path) {
  int64_t rows = 0;
  RETURN_IF_ERROR(ForEachJsonLine(path, [&](int64_t, absl::string_view, const nlohmann::json&) {
    ++rows;
    return absl::OkStatus();
  }));
  return rows;
}

absl::Status AddSource(ArtifactClient& artifacts, const v1::DatasetSource& source, const DatasetOptions& options,
                       std::unique_ptr<Tokenizer>& tokenizer, DatasetBuilder& builder) {
  const std::string folder = options.cache_dir + "/blobs";
  RETURN_IF_ERROR(MakeFolders(folder, 0700));
  ASSIGN_OR_RETURN(const std::string path, JoinBelow(folder, source.file().sha256()));
  RETURN_IF_ERROR(WithContext(artifacts.GetFile(source.file(), path), absl::StrCat("fetch ", source.path())));
  int64_t limit = std::numeric_limits<int64_t>::max();
  if (source.weight() > 0 && source.weight() < 1) {
    int64_t rows = source.rows();
    if (rows <= 0) {
      ASSIGN_OR_RETURN(rows, CountRows(path));
    }
    limit = static_cast<int64_t>(std::floor(source.weight() * static_cast<double>(rows) + 1e-9));
  }
  if (tokenizer == nullptr && source.format() != v1::DATASET_FORMAT_TOKENIZED) {
    TokenizerOptions of_job;
    of_job.now = options.now;
    of_job.add_tokens = options.add_tokens;
    of_job.add_special_tokens = options.add_special_tokens;
    auto loaded = Tokenizer::Load(options.tokenizer_folder, of_job);
    // Rows that are tokenized already need none.
    if (loaded.ok()) {
      tokenizer = *std::move(loaded);
    } else if (source.format() != v1::DATASET_FORMAT_UNSPECIFIED) {
      return loaded.status();
    }
  }
  return AddRows(path, source, limit, tokenizer.get(), options, builder);
}

}  // namespace

absl::StatusOr<std::string> DatasetCacheKey(const std::vector<v1::DatasetSource>& sources,
                                            const DatasetOptions& options) {
  Sha256 key;
  key.UpdateField(kTokenizationVersion);
  bool prints_date = false;
  for (const char* name : {"tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "config.json",
                           "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"}) {
    const auto contents = ReadFile(absl::StrCat(options.tokenizer_folder, "/", name), int64_t{256} << 20);
    if (!contents.ok() && !absl::IsNotFound(contents.status())) return contents.status();
    key.UpdateField(name);
    key.UpdateU64(contents.ok());
    key.UpdateField(contents.ok() ? *contents : "");
    prints_date = prints_date || (contents.ok() && absl::StrContains(*contents, "strftime_now"));
  }
  if (prints_date) key.UpdateU64(static_cast<uint64_t>(absl::ToUnixSeconds(options.now)));
  const auto update_list = [&](const auto& texts) {
    key.UpdateU64(static_cast<uint64_t>(texts.size()));
    for (const std::string& text : texts) key.UpdateField(text);
  };
  update_list(options.add_tokens);
  update_list(options.add_special_tokens);
  key.UpdateU64(static_cast<uint64_t>(options.vocab_size));
  key.UpdateU64(static_cast<uint64_t>(options.max_length));
  for (const v1::DatasetSource& source : sources) {
    key.UpdateField(source.file().sha256());
    key.UpdateU64(static_cast<uint64_t>(source.format()));
    key.UpdateField(absl::StrCat(source.weight()));
    const SftOptions sft = SftOptionsOf(options.training, source);
    key.UpdateU64(sft.completion_only_loss.has_value() ? 1 + uint64_t{*sft.completion_only_loss} : 0);
    key.UpdateU64(sft.assistant_only_loss);
    key.UpdateU64(sft.train_on_eos);
    key.UpdateField(sft.prompt_template);
    update_list(sft.prompt_template_fields);
  }
  return ToHex(key.Finish());
}

absl::Status AddRows(const std::string& path, const v1::DatasetSource& source, int64_t limit,
                     const Tokenizer* tokenizer, const DatasetOptions& options, DatasetBuilder& builder) {
  const std::string& shown_path = source.path();
  const SftOptions sft = SftOptionsOf(options.training, source);
  v1::DatasetFormat format = sft.prompt_template.empty() ? source.format() : v1::DATASET_FORMAT_COLUMNS;
  std::vector<Row> rows;
  int64_t taken = 0;
  const auto flush = [&]() -> absl::Status {
    if (rows.empty()) return absl::OkStatus();
    const bool ids = format == v1::DATASET_FORMAT_TOKENIZED;
    if (!ids && tokenizer == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(shown_path, ": texts need a tokenizer, and ", options.tokenizer_folder, " has none that loads"));
    }
    RETURN_IF_ERROR(AddBatch(rows, shown_path, sft, ids ? nullptr : tokenizer, options, builder));
    taken += static_cast<int64_t>(rows.size());
    rows.clear();
    if (options.tell) options.tell(absl::StrCat("tokenizing: ", taken, " rows"));
    return absl::OkStatus();
  };
  int64_t seen = 0;
  absl::Status flushed;  // errors of ours, which name the place already
  const absl::Status read =
      ForEachJsonLine(path, [&](int64_t line, absl::string_view text, const nlohmann::json& row) -> absl::Status {
        if (seen++ >= limit) return absl::OutOfRangeError("enough");
        if (format == v1::DATASET_FORMAT_UNSPECIFIED) {
          ASSIGN_OR_RETURN(format, InferRowFormat(row));
        }
        // Of token ids ExampleFromTokens says it; rows of conversations may be curated traces, which are sound.
        if (format != v1::DATASET_FORMAT_TOKENIZED && format != v1::DATASET_FORMAT_MESSAGES) {
          RETURN_IF_ERROR(CheckTrainingRow(row, format, sft));
        }
        rows.push_back({line, std::string(text)});
        if (rows.size() < kRowsAtOnce) return absl::OkStatus();
        return flushed = flush();
      });
  RETURN_IF_ERROR(flushed);
  if (!read.ok() && !absl::IsOutOfRange(read)) {
    absl::string_view message = read.message();
    // The place in the cache says nothing to the user.
    if (absl::ConsumePrefix(&message, path)) return absl::Status(read.code(), absl::StrCat(shown_path, message));
    return read;
  }
  return flush();
}

absl::StatusOr<Dataset> LoadDataset(ArtifactClient& artifacts, const std::vector<v1::DatasetSource>& sources,
                                    const DatasetOptions& options) {
  if (sources.empty()) return DatasetBuilder(options.max_length).Build();
  const std::string folder = options.cache_dir + "/datasets";
  RETURN_IF_ERROR(MakeFolders(folder, 0700));
  ASSIGN_OR_RETURN(const std::string key, DatasetCacheKey(sources, options));
  const std::string path = absl::StrCat(folder, "/", key, ".safetensors");
  ASSIGN_OR_RETURN(
      const UniqueFd lock, LockFile(absl::StrCat(folder, "/", key, ".lock"), [&](absl::Duration waited) {
        if (!options.tell) return;
        options.tell(absl::StrCat("waiting for another rank to tokenize, for ", absl::ToInt64Seconds(waited), " s"));
      }));
  if (::access(path.c_str(), R_OK) == 0) {
    absl::StatusOr<Dataset> cached = Dataset::LoadFrom(path);
    if (cached.ok()) return cached;
    spdlog::warn("dataset_cache_discarded path={} error=\"{}\"", path, cached.status().ToString());
  }
  const absl::Time start = absl::Now();
  std::unique_ptr<Tokenizer> tokenizer;
  DatasetBuilder builder(options.max_length);
  for (const v1::DatasetSource& source : sources) {
    RETURN_IF_ERROR(AddSource(artifacts, source, options, tokenizer, builder));
  }
  Dataset dataset = std::move(builder).Build();
  RETURN_IF_ERROR(WithContext(dataset.SaveTo(path), "keep the tokenized rows"));
  spdlog::info("dataset_tokenized kept={} over_long={} nothing_to_train={} seconds={:.2f}", dataset.counts().kept,
               dataset.counts().over_long, dataset.counts().nothing_to_train,
               absl::ToDoubleSeconds(absl::Now() - start));
  return dataset;
}

}  // namespace retort
