#include "cli/spec/training_sample.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cli/spec/local_checks.h"
#include "common/json.h"
#include "common/status.h"
#include "model/tokenizer_folder.h"
#include "model/training_rows.h"

namespace retort::cli {
namespace {

constexpr size_t kShownTokens = 400;

struct FirstRow {
  int64_t line = 0;
  nlohmann::ordered_json row;
};

absl::StatusOr<FirstRow> ReadFirstRow(const std::string& path) {
  FirstRow first;
  const absl::Status status = ForEachJsonLine(path, [&](int64_t line, absl::string_view text, const nlohmann::json&) {
    first = {line, nlohmann::ordered_json::parse(text)};
    return absl::OutOfRangeError("enough");
  });
  if (first.line > 0) return first;
  return status.ok() ? absl::NotFoundError("no rows") : status;
}

absl::StatusOr<TrainingSample> Prepare(const Tokenizer* tokenizer, const v1::TrainingSpec& training,
                                       const v1::DatasetSource& source) {
  ASSIGN_OR_RETURN(const FirstRow first, ReadFirstRow(source.path()));
  TrainingSample sample{.path = source.path(), .line = first.line};
  const std::string where = absl::StrCat(source.path(), ":", first.line);
  // Whether given ids are the model's is for who has its config.
  auto example = source.format() == v1::DATASET_FORMAT_TOKENIZED
                     ? ExampleFromTokens(first.row, INT32_MAX)
                     : ExampleFromRow(*tokenizer, first.row, SftOptionsOf(training, source), INT32_MAX);
  if (!example.ok()) return WithContext(example.status(), where);
  if (tokenizer != nullptr) {
    ASSIGN_OR_RETURN(sample.tokens, ShowTokens(*tokenizer, example->input_ids, example->labels));
  } else {
    for (size_t i = 0; i < example->input_ids.size(); ++i) {
      sample.tokens.push_back({absl::StrCat(example->input_ids[i]), example->labels[i] != kIgnoreLabel});
    }
  }
  sample.input_ids = std::move(example->input_ids);
  sample.labels = std::move(example->labels);
  return sample;
}

// A row as curation writes them, for what the options ask of the chat template.
absl::Status TryCuratedRow(const Tokenizer& tokenizer, const v1::TrainingSpec& training) {
  const nlohmann::ordered_json row = {
      {"messages", {{{"role", "user"}, {"content", "1 + 1?"}}, {{"role", "assistant"}, {"content", "2"}}}}};
  return ExampleFromRow(tokenizer, row, SftOptionsOf(training, v1::DatasetSource())).status();
}

// Tokens that are new beside an adapter's tokenizer need rows in its embeddings, which are taken as they are.
void CheckAdapterHolds(const Origins& origins, const v1::StudentSpec& student, const TokenAdditions& additions,
                       Diagnostics* diagnostics) {
  const char* path = student.add_tokens_size() > 0 ? "student.add_tokens" : "student.add_special_tokens";
  if (!additions.any_new() || student.adapter_name_or_path().empty()) return;
  const auto tensors = ReadSafetensorsHeader(student.adapter_name_or_path() + "/adapter_model.safetensors");
  if (!tensors.ok()) return;  // said already
  int64_t rows = 0;
  for (const TensorInfo& tensor : *tensors) {
    const bool embeddings = tensor.name == "base_model.model.model.embed_tokens.weight";
    if (embeddings && tensor.shape.size() == 2) rows = tensor.shape[0];
  }
  if (rows >= additions.rows) return;
  diagnostics->Add(
      origins.Of(path), path,
      absl::StrCat("the adapter that training starts from, ", student.adapter_name_or_path(),
                   rows == 0 ? ", has no embeddings of its own"
                             : absl::StrCat(", has ", rows, " rows of embeddings, and ", additions.rows, " are needed"),
                   "; tokens are added to a new adapter"));
}

}  // namespace

TrainingText LookAtTrainingText(const Origins& origins, const v1::JobSpec& spec, Diagnostics* diagnostics) {
  TrainingText text;
  const v1::StudentSpec& student = spec.student();
  const char* model = "student.model_name_or_path";
  if (!spec.has_student() || diagnostics->Touches(model) || diagnostics->Touches("student.training")) return text;
  const bool adds = student.add_tokens_size() + student.add_special_tokens_size() > 0;
  const bool generated = spec.dataset().empty();
  const bool only_ids = !generated && std::all_of(spec.dataset().begin(), spec.dataset().end(), [](const auto& source) {
    return source.format() == v1::DATASET_FORMAT_TOKENIZED;
  });
  std::unique_ptr<Tokenizer> tokenizer;
  const std::string folder = TokenizerFolderOf(student.model_name_or_path(), student.adapter_name_or_path());
  if (adds || (generated ? student.training().assistant_only_loss() : HasTokenizer(folder))) {
    TokenizerOptions options;
    options.add_tokens.assign(student.add_tokens().begin(), student.add_tokens().end());
    options.add_special_tokens.assign(student.add_special_tokens().begin(), student.add_special_tokens().end());
    auto loaded = Tokenizer::Load(folder, options);
    if (loaded.ok()) {
      tokenizer = *std::move(loaded);
      text.additions = tokenizer->additions();
      CheckAdapterHolds(origins, student, text.additions, diagnostics);
    } else if (adds || !only_ids) {
      diagnostics->Add(origins.Of(model), model, loaded.status().message());
      return text;
    }
  }
  if (generated && tokenizer != nullptr && student.training().assistant_only_loss()) {
    if (const absl::Status status = TryCuratedRow(*tokenizer, student.training()); !status.ok()) {
      const char* path = "student.training.assistant_only_loss";
      diagnostics->Add(origins.Of(path), path, absl::StripPrefix(status.message(), "assistant_only_loss: "));
    }
  }
  for (int i = 0; i < spec.dataset_size(); ++i) {
    const v1::DatasetSource& source = spec.dataset(i);
    const std::string path = absl::StrCat("dataset.", i, ".path");
    if (diagnostics->Touches(absl::StrCat("dataset.", i))) continue;
    if (tokenizer == nullptr && source.format() != v1::DATASET_FORMAT_TOKENIZED) continue;
    auto sample = Prepare(tokenizer.get(), student.training(), source);
    if (!sample.ok()) {
      diagnostics->Add(origins.Of(path), path, sample.status().message());
    } else if (!text.sample.has_value() && source.split() != "validation") {
      text.sample = *std::move(sample);
    }
  }
  return text;
}

std::string SampleText(const TrainingText& text, bool color) {
  if (!text.sample.has_value()) return "";
  const TrainingSample& sample = *text.sample;
  const auto untrained = std::count(sample.labels.begin(), sample.labels.end(), kIgnoreLabel);
  const auto size = static_cast<int64_t>(sample.input_ids.size());
  return absl::StrCat("loss mask of ", sample.path, ":", sample.line, ", ", size, " tokens, ", size - untrained,
                      " trained", color ? "" : " [so]", ":\n", MaskText(sample.tokens, color, kShownTokens), "\n");
}

nlohmann::json TrainingTextToJson(const TrainingText& text) {
  nlohmann::json document = {{"sample", nullptr}, {"added_tokens", nlohmann::json::array()}};
  if (text.sample.has_value()) {
    document["sample"] = {{"path", text.sample->path},
                          {"line", text.sample->line},
                          {"input_ids", text.sample->input_ids},
                          {"labels", text.sample->labels}};
  }
  for (const TokenAdditions::Token& token : text.additions.tokens) {
    document["added_tokens"].push_back({{"token", token.text}, {"id", token.id}, {"known", token.known}});
  }
  return document;
}

}  // namespace retort::cli
