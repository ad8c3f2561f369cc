#include "model/training_rows.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"

namespace retort {
namespace {

using nlohmann::json;

constexpr const char* kRoles[] = {"system", "developer", "user", "assistant", "tool", "function"};

bool Has(const json& row, const char* key) {
  const auto found = row.find(key);
  return found != row.end() && !found->is_null();
}

absl::Status Invalid(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

absl::Status Missing(const json& row, absl::string_view column) {
  std::vector<std::string> columns;
  for (const auto& [name, value] : row.items()) columns.push_back(name);
  return Invalid(column, absl::StrCat("missing; the row has ", columns.empty() ? "no" : absl::StrJoin(columns, ", "),
                                      columns.empty() ? " columns" : ""));
}

absl::Status CheckList(const json& list, const std::string& name) {
  if (!list.is_array() || list.empty()) return Invalid(name, "wants a list of {role, content}");
  for (size_t i = 0; i < list.size(); ++i) {
    const json& message = list[i];
    const std::string where = absl::StrCat(name, ".", i);
    if (!message.is_object()) return Invalid(where, "wants {role, content}");
    const auto role = message.find("role");
    if (role == message.end() || !role->is_string()) return Invalid(where + ".role", "wants a string");
    const std::string& text = role->get_ref<const std::string&>();
    if (std::find(std::begin(kRoles), std::end(kRoles), text) == std::end(kRoles)) {
      return Invalid(where + ".role", absl::StrCat("is \"", text, "\", wants one of ", absl::StrJoin(kRoles, ", ")));
    }
    const auto content = message.find("content");
    // Turns that call tools may have none; a list is of parts, which the template puts together.
    const bool absent = content == message.end() || content->is_null();
    if (absent ? !Has(message, "tool_calls") : !content->is_string() && !content->is_array()) {
      return Invalid(where + ".content", "wants a string");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckMessages(const json& row, const SftOptions& options) {
  if (!Has(row, "messages")) return Missing(row, "messages");
  const json& messages = row["messages"];
  RETURN_IF_ERROR(CheckList(messages, "messages"));
  const bool whole = options.assistant_only_loss || !options.completion_only_loss.value_or(true);
  if (!whole && messages.back()["role"] != "assistant") {
    return Invalid("messages", "the last turn must be the assistant's; it is what is trained");
  }
  return absl::OkStatus();
}

absl::Status CheckPair(const json& row, const SftOptions& options) {
  for (const char* column : {"prompt", "completion"}) {
    if (!Has(row, column)) return Missing(row, column);
  }
  const bool texts = row["prompt"].is_string();
  if (texts != row["completion"].is_string()) {
    return Invalid(texts ? "completion" : "prompt", "wants a string where the other is one, or both lists of messages");
  }
  if (texts && options.assistant_only_loss) {
    return Invalid("assistant_only_loss",
                   "needs conversations, and prompt and completion are texts; leave it out to train the completion");
  }
  if (texts) return absl::OkStatus();
  RETURN_IF_ERROR(CheckList(row["prompt"], "prompt"));
  return CheckList(row["completion"], "completion");
}

absl::Status CheckText(const json& row, const SftOptions& options) {
  if (!Has(row, "text")) return Missing(row, "text");
  if (!row["text"].is_string()) return Invalid("text", "wants a string");
  if (options.assistant_only_loss) return Invalid("assistant_only_loss", "needs conversations, and the rows are texts");
  if (options.completion_only_loss.value_or(false)) {
    return Invalid("completion_only_loss",
                   "a text has no completion to tell from its prompt; give rows of prompt and completion, or a "
                   "prompt_template, whose last slot is the completion");
  }
  return absl::OkStatus();
}

absl::Status CheckTokens(const json& row, const SftOptions& options) {
  if (!Has(row, "input_ids")) return Missing(row, "input_ids");
  const json& ids = row["input_ids"];
  if (!ids.is_array() || ids.empty()) return Invalid("input_ids", "wants a list of token ids");
  const auto outside = [](const json& id, int64_t least) {
    return !id.is_number_integer() || (id.is_number_unsigned() && id.get<uint64_t>() > INT32_MAX) ||
           id.get<int64_t>() > INT32_MAX || id.get<int64_t>() < least;
  };
  for (size_t i = 0; i < ids.size(); ++i) {
    if (outside(ids[i], 0)) return Invalid(absl::StrCat("input_ids.", i), "wants a token id");
  }
  if (options.assistant_only_loss) {
    return Invalid("assistant_only_loss", "needs conversations, and the rows are token ids, whose labels say it");
  }
  if (!Has(row, "labels")) {
    if (!options.completion_only_loss.value_or(false)) return absl::OkStatus();
    return Invalid("completion_only_loss", "rows of token ids without labels have no completion; give labels");
  }
  const json& labels = row["labels"];
  if (!labels.is_array()) return Invalid("labels", "wants a list of token ids, -100 where not trained");
  if (ids.size() != labels.size()) {
    return Invalid("labels", absl::StrCat("has ", labels.size(), " entries, input_ids has ", ids.size()));
  }
  for (size_t i = 0; i < labels.size(); ++i) {
    if (labels[i] != kIgnoreLabel && outside(labels[i], 0)) {
      return Invalid(absl::StrCat("labels.", i), "wants a token id, or -100");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckColumns(const json& row, const SftOptions& options) {
  if (options.assistant_only_loss) {
    return Invalid("assistant_only_loss", "needs conversations, and prompt_template makes texts");
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> columns, PromptTemplateColumns(options));
  for (const std::string& column : columns) {
    if (!Has(row, column.c_str())) return Missing(row, column);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<v1::DatasetFormat> InferRowFormat(const json& row) {
  if (!row.is_object()) return absl::InvalidArgumentError(absl::StrCat("is ", row.type_name(), ", wants an object"));
  if (Has(row, "input_ids")) return v1::DATASET_FORMAT_TOKENIZED;
  if (Has(row, "prompt") && Has(row, "completion")) return v1::DATASET_FORMAT_PROMPT_COMPLETION;
  if (Has(row, "messages")) return v1::DATASET_FORMAT_MESSAGES;
  if (Has(row, "text")) return v1::DATASET_FORMAT_TEXT;
  std::vector<std::string> columns;
  for (const auto& [name, value] : row.items()) columns.push_back(name);
  return absl::InvalidArgumentError(absl::StrCat(
      "the row has ", columns.empty() ? "no columns" : absl::StrCat("columns ", absl::StrJoin(columns, ", ")),
      "; wants messages, or prompt and completion, or text, or input_ids (and labels), or a "
      "dataset[].prompt_template that says what becomes of its columns"));
}

absl::Status CheckTrainingRow(const json& row, v1::DatasetFormat format, const SftOptions& options) {
  if (!row.is_object()) return absl::InvalidArgumentError(absl::StrCat("is ", row.type_name(), ", wants an object"));
  switch (format) {
    case v1::DATASET_FORMAT_MESSAGES:
      return CheckMessages(row, options);
    case v1::DATASET_FORMAT_TOKENIZED:
      return CheckTokens(row, options);
    case v1::DATASET_FORMAT_PROMPT_COMPLETION:
      return CheckPair(row, options);
    case v1::DATASET_FORMAT_TEXT:
      return CheckText(row, options);
    case v1::DATASET_FORMAT_COLUMNS:
      return CheckColumns(row, options);
    default:
      return InferRowFormat(row).status();
  }
}

SftOptions SftOptionsOf(const v1::TrainingSpec& training, const v1::DatasetSource& source) {
  SftOptions options;
  if (training.has_completion_only_loss()) options.completion_only_loss = training.completion_only_loss();
  options.assistant_only_loss = training.assistant_only_loss();
  options.train_on_eos = !training.has_train_on_eos() || training.train_on_eos();
  options.prompt_template = source.prompt_template();
  options.prompt_template_fields.assign(source.prompt_template_fields().begin(), source.prompt_template_fields().end());
  return options;
}

}  // namespace retort
