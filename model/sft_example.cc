#include "model/sft_example.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
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

absl::StatusOr<std::vector<int32_t>> SampleStarts(const json& position_ids, size_t size) {
  ASSIGN_OR_RETURN(const std::vector<int32_t> positions, ReadIds(position_ids, "position_ids", INT32_MAX, false));
  if (positions.size() != size) {
    return absl::InvalidArgumentError(
        absl::StrCat("position_ids: ", positions.size(), " values for ", size, " input_ids"));
  }
  std::vector<int32_t> starts;
  for (size_t i = 0; i < positions.size(); ++i) {
    if (positions[i] == 0) {
      starts.push_back(static_cast<int32_t>(i));
    } else if (i == 0 || positions[i] != positions[i - 1] + 1) {
      return absl::InvalidArgumentError(absl::StrCat("position_ids[", i, "]: ", positions[i],
                                                     " neither follows the one before nor begins a sample with 0"));
    }
  }
  if (starts.size() == 1) starts.clear();
  return starts;
}

absl::StatusOr<std::string> Column(const json& row, const std::string& name) {
  const auto found = row.find(name);
  if (found == row.end() || found->is_null()) {
    return absl::InvalidArgumentError(absl::StrCat("prompt_template: the row has no column \"", name, "\""));
  }
  if (found->is_string()) return found->get<std::string>();
  return found->dump(-1, ' ', false, json::error_handler_t::replace);
}

// A text, then a column's value; the last piece has no column.
struct Piece {
  std::string text;
  std::string column;
};

absl::StatusOr<std::vector<Piece>> ParseTemplate(const SftOptions& options) {
  const std::string& source = options.prompt_template;
  const auto wrong = [](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("prompt_template: ", what));
  };
  std::vector<Piece> pieces(1);
  size_t unnamed = 0;
  for (size_t i = 0; i < source.size(); ++i) {
    const char c = source[i];
    if ((c == '{' || c == '}') && i + 1 < source.size() && source[i + 1] == c) {
      pieces.back().text += c;
      ++i;
    } else if (c == '{') {
      const size_t end = source.find('}', i);
      if (end == std::string::npos) return wrong("a { without its }; write {{ for a brace");
      std::string name = source.substr(i + 1, end - i - 1);
      if (name.empty()) {
        if (unnamed >= options.prompt_template_fields.size()) {
          return wrong(absl::StrCat("more {} than the ", options.prompt_template_fields.size(),
                                    " columns of prompt_template_fields"));
        }
        name = options.prompt_template_fields[unnamed++];
      }
      pieces.back().column = std::move(name);
      pieces.emplace_back();
      i = end;
    } else if (c == '}') {
      return wrong("a } without its {; write }} for a brace");
    } else {
      pieces.back().text += c;
    }
  }
  if (pieces.size() == 1) return wrong("has no slot; {} takes the next of prompt_template_fields, {name} that column");
  if (unnamed < options.prompt_template_fields.size()) {
    return wrong(absl::StrCat("has ", unnamed, " {} for the ", options.prompt_template_fields.size(),
                              " columns of prompt_template_fields"));
  }
  return pieces;
}

struct Filled {
  std::string text;
  size_t last_slot = 0;  // where its value begins
};

absl::StatusOr<Filled> FillTemplate(const json& row, const SftOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<Piece> pieces, ParseTemplate(options));
  Filled filled;
  for (size_t i = 0; i + 1 < pieces.size(); ++i) {
    filled.text += pieces[i].text;
    filled.last_slot = filled.text.size();
    ASSIGN_OR_RETURN(const std::string value, Column(row, pieces[i].column));
    filled.text += value;
  }
  filled.text += pieces.back().text;
  return filled;
}

TrainingExample FromTrl(TrlExample made) {
  TrainingExample example;
  example.input_ids = std::move(made.ids);
  example.labels = std::move(made.labels);
  return example;
}

absl::StatusOr<TrainingExample> FromTemplate(const Tokenizer& tokenizer, const json& row, const SftOptions& options) {
  ASSIGN_OR_RETURN(const Filled filled, FillTemplate(row, options));
  TrlOptions trl;
  trl.labels = true;
  json made = json::object();
  if (options.completion_only_loss.value_or(false)) {
    made["prompt"] = filled.text.substr(0, filled.last_slot);
    made["completion"] = filled.text.substr(filled.last_slot);
  } else {
    made["text"] = filled.text;
  }
  ASSIGN_OR_RETURN(TrlExample example, MakeTrlExample(tokenizer, made, trl));
  return FromTrl(std::move(example));
}

// A conversation whose last turn is trained, as ExampleFromMessages wants it; null: none.
json Conversation(const json& row) {
  const auto plain = [&](const char* key) { return row.contains(key) && !row[key].is_null(); };
  if (plain("chat_template") || plain("chat_template_kwargs") || plain("tools")) return nullptr;
  if (row.contains("messages") && !row.contains("prompt")) return row;
  if (!row.contains("prompt") || !row["prompt"].is_array()) return nullptr;
  const json completion = row.value("completion", json());
  if (!completion.is_array() || completion.size() != 1) return nullptr;
  json messages = row["prompt"];
  messages.push_back(completion[0]);
  return {{"messages", std::move(messages)}};
}

absl::StatusOr<TrainingExample> Trained(const Tokenizer& tokenizer, const json& row, const SftOptions& options) {
  if (!options.prompt_template.empty()) return FromTemplate(tokenizer, row, options);
  if (row.contains("messages") && row.contains("prompt") && row.value("completion", json()).is_null()) {
    // The prompt's text beside the whole conversation, as some collections have it.
    json conversation = row;
    conversation.erase("prompt");
    return Trained(tokenizer, conversation, options);
  }
  if (!options.assistant_only_loss && options.completion_only_loss.value_or(true)) {
    if (const json conversation = Conversation(row); !conversation.is_null()) {
      return ExampleFromMessages(tokenizer, conversation);
    }
  }
  TrlOptions trl;
  trl.labels = true;
  trl.assistant_only = options.assistant_only_loss;
  trl.completion_only = options.completion_only_loss.value_or(true);
  auto example = MakeTrlExample(tokenizer, row, trl);
  if (!example.ok()) {
    // In the words of a job.
    const std::string message =
        absl::StrReplaceAll(example.status().message(),
                            {{"loss_on: assistant needs", "assistant_only_loss: needs"},
                             {"loss_on: ", "assistant_only_loss: "},
                             {"give one as chat_template, or train on the completion",
                              "put them into the model's chat_template.jinja, or leave assistant_only_loss out"}});
    return absl::Status(example.status().code(), message);
  }
  return FromTrl(*std::move(example));
}

}  // namespace

absl::StatusOr<std::vector<std::string>> PromptTemplateColumns(const SftOptions& options) {
  ASSIGN_OR_RETURN(const std::vector<Piece> pieces, ParseTemplate(options));
  std::vector<std::string> columns;
  for (size_t i = 0; i + 1 < pieces.size(); ++i) columns.push_back(pieces[i].column);
  return columns;
}

absl::StatusOr<TrainingExample> ExampleFromRow(const Tokenizer& tokenizer, const json& row, const SftOptions& options,
                                               int64_t vocab_size) {
  if (!row.is_object()) return absl::InvalidArgumentError("the row is not a JSON object");
  if (options.prompt_template.empty() && row.contains("input_ids") && !row["input_ids"].is_null()) {
    return ExampleFromTokens(row, vocab_size < 0 ? tokenizer.vocab_size() : vocab_size);
  }
  ASSIGN_OR_RETURN(TrainingExample example, Trained(tokenizer, row, options));
  if (!options.train_on_eos) {
    std::replace(example.labels.begin(), example.labels.end(), tokenizer.eos_token_id(), kIgnoreLabel);
  }
  return example;
}

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
  if (row.contains("position_ids") && !row["position_ids"].is_null()) {
    ASSIGN_OR_RETURN(example.sample_starts, SampleStarts(row["position_ids"], example.input_ids.size()));
  }
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
