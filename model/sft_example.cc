#include "model/sft_example.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status.h"

namespace retort {
namespace {

using json = nlohmann::ordered_json;

// What some templates put at the end of the generation prompt, and some traces at their beginning.
constexpr absl::string_view kThink = "<think>";

absl::StatusOr<std::string> CheckMessages(const json& row) {
  if (!row.is_object() || !row.contains("messages")) return absl::InvalidArgumentError("the row has no \"messages\"");
  const json& messages = row["messages"];
  if (!messages.is_array()) return absl::InvalidArgumentError("messages: not a list");
  if (messages.size() < 2) {
    return absl::InvalidArgumentError("messages: needs at least one turn before the assistant's");
  }
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].is_object() || !messages[i].contains("role") || !messages[i]["role"].is_string()) {
      return absl::InvalidArgumentError(absl::StrCat("messages[", i, "]: has no role"));
    }
  }
  const json& last = messages.back();
  if (last["role"] != "assistant") {
    return absl::InvalidArgumentError(
        absl::StrCat("messages: the last turn is ", last["role"].dump(), "'s; only an assistant's can be trained"));
  }
  if (!last.contains("content") || !last["content"].is_string() ||
      last["content"].get_ref<const std::string&>().empty()) {
    return absl::InvalidArgumentError("messages: the assistant's last turn has no text in \"content\"");
  }
  return last["content"].get<std::string>();
}

// The text that the model is shown and the text that it learns to write.
struct Turn {
  std::string prompt;
  std::string completion;
  std::string tail;  // the end of `completion` that follows the content; empty where the template did not write it
  bool written_by_template = false;
};

// Splits the conversation where the assistant's last turn begins; falls back to prompt + content where the template
// does not write the content as it stands.
Turn SplitTurn(std::string prompt, absl::string_view whole, absl::string_view content) {
  Turn turn;
  const absl::string_view trimmed = absl::StripTrailingAsciiWhitespace(prompt);
  const bool opened_twice = absl::EndsWith(trimmed, kThink) && absl::StartsWith(content, kThink);
  if (absl::StartsWith(whole, prompt) && absl::StartsWith(whole.substr(prompt.size()), content)) {
    turn.tail = std::string(whole.substr(prompt.size() + content.size()));
    turn.written_by_template = !opened_twice;
  }
  // "<think>" may not stand there twice. The prompt's is kept where it is the content's to the letter: generation will
  // start after it.
  if (opened_twice) {
    const absl::string_view opening = absl::string_view(prompt).substr(trimmed.size() - kThink.size());
    if (!absl::ConsumePrefix(&content, opening)) prompt.resize(trimmed.size() - kThink.size());
  }
  turn.prompt = std::move(prompt);
  turn.completion = absl::StrCat(content, turn.tail);
  return turn;
}

absl::StatusOr<std::vector<int32_t>> ReadIds(const json& list, const char* what, int64_t vocab_size, bool may_ignore) {
  if (!list.is_array()) return absl::InvalidArgumentError(absl::StrCat(what, ": not a list"));
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const json& value : list) {
    const bool whole =
        value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT32_MAX});
    const int64_t id = whole ? value.get<int64_t>() : -1;
    if (!(id >= 0 && id < vocab_size) && !(may_ignore && id == kIgnoreLabel)) {
      return absl::InvalidArgumentError(absl::StrCat(what, "[", ids.size(),
                                                     "]: ", value.dump(-1, ' ', false, json::error_handler_t::replace),
                                                     " is no token id below ", vocab_size));
    }
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

}  // namespace

absl::StatusOr<TrainingExample> ExampleFromMessages(const Tokenizer& tokenizer, const json& row) {
  ASSIGN_OR_RETURN(const std::string content, CheckMessages(row));
  const auto dump = [](const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); };
  json messages = row["messages"];
  ASSIGN_OR_RETURN(const std::string whole, tokenizer.ApplyChatTemplate(dump(messages), false));
  messages.erase(messages.size() - 1);
  ASSIGN_OR_RETURN(std::string prompt, tokenizer.ApplyChatTemplate(dump(messages), true));

  const Turn turn = SplitTurn(std::move(prompt), whole, content);
  TrainingExample example;
  ASSIGN_OR_RETURN(const std::vector<int32_t> prompt_ids, tokenizer.Encode(turn.prompt, false));
  if (turn.written_by_template) {
    ASSIGN_OR_RETURN(example.input_ids, tokenizer.Encode(whole, false));
  }
  // A token that spans the boundary cannot be generated after the prompt: then, too, the two are encoded apart.
  if (example.input_ids.size() < prompt_ids.size() ||
      !std::equal(prompt_ids.begin(), prompt_ids.end(), example.input_ids.begin())) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> completion_ids, tokenizer.Encode(turn.completion, false));
    example.input_ids = prompt_ids;
    example.input_ids.insert(example.input_ids.end(), completion_ids.begin(), completion_ids.end());
  }

  const int32_t eos = tokenizer.eos_token_id();
  ASSIGN_OR_RETURN(const std::vector<int32_t> tail_ids, tokenizer.Encode(turn.tail, false));
  if (eos >= 0) {
    if (std::find(tail_ids.begin(), tail_ids.end(), eos) == tail_ids.end()) example.input_ids.push_back(eos);
  } else if (tail_ids.empty()) {
    return absl::InvalidArgumentError(
        "nothing ends the assistant's turn: tokenizer_config.json names no eos_token that tokenizer.json knows, and "
        "the "
        "chat template writes nothing after the turn; a model trained so would never stop");
  }
  example.labels = example.input_ids;
  std::fill_n(example.labels.begin(), prompt_ids.size(), kIgnoreLabel);
  return example;
}

absl::StatusOr<TrainingExample> ExampleFromTokens(const json& row, int64_t vocab_size) {
  if (!row.is_object() || !row.contains("input_ids")) return absl::InvalidArgumentError("the row has no \"input_ids\"");
  TrainingExample example;
  ASSIGN_OR_RETURN(example.input_ids, ReadIds(row["input_ids"], "input_ids", vocab_size, false));
  if (example.input_ids.empty()) return absl::InvalidArgumentError("input_ids: the list is empty");
  if (!row.contains("labels") || row["labels"].is_null()) {
    example.labels = example.input_ids;
    return example;
  }
  ASSIGN_OR_RETURN(example.labels, ReadIds(row["labels"], "labels", vocab_size, true));
  if (example.labels.size() != example.input_ids.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("labels: ", example.labels.size(), " values for ", example.input_ids.size(), " input_ids"));
  }
  return example;
}

}  // namespace retort
