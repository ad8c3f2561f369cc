#include "model/trl_example.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace retort {
namespace {

using json = nlohmann::ordered_json;

std::string Dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

bool Has(const json& row, const char* key) {
  const auto found = row.find(key);
  return found != row.end() && !found->is_null();
}

absl::StatusOr<bool> Flag(const json& row, const char* key, bool fallback) {
  if (!Has(row, key)) return fallback;
  if (!row[key].is_boolean()) return absl::InvalidArgumentError(absl::StrCat(key, ": neither true nor false"));
  return row[key].get<bool>();
}

absl::StatusOr<std::string> Text(const json& row, const char* key) {
  if (!row[key].is_string()) return absl::InvalidArgumentError(absl::StrCat(key, ": not a text"));
  return row[key].get<std::string>();
}

absl::Status CheckMessages(const json& list, const char* key) {
  if (!list.is_array()) return absl::InvalidArgumentError(absl::StrCat(key, ": not a list of messages"));
  for (size_t i = 0; i < list.size(); ++i) {
    if (!list[i].is_object()) return absl::InvalidArgumentError(absl::StrCat(key, "[", i, "]: not an object"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ChatOptions> ReadChatOptions(const json& row) {
  ChatOptions options;
  if (Has(row, "chat_template")) {
    ASSIGN_OR_RETURN(options.chat_template, Text(row, "chat_template"));
  }
  json variables = json::object();
  if (Has(row, "tools")) {
    variables["tools"] = row["tools"];
    if (row["tools"].is_string()) {
      variables["tools"] = json::parse(row["tools"].get_ref<const std::string&>(), nullptr, false);
      if (variables["tools"].is_discarded()) return absl::InvalidArgumentError("tools: not JSON");
    }
  }
  if (Has(row, "chat_template_kwargs")) {
    if (!row["chat_template_kwargs"].is_object()) {
      return absl::InvalidArgumentError("chat_template_kwargs: not a JSON object");
    }
    for (const auto& [name, value] : row["chat_template_kwargs"].items()) variables[name] = value;
  }
  if (!variables.empty()) options.variables_json = Dump(variables);
  return options;
}

// Which labels are wanted of this row.
absl::StatusOr<TrlOptions> ReadLoss(const json& row, TrlOptions options) {
  if (!Has(row, "loss_on")) return options;
  const json& loss_on = row["loss_on"];
  if (loss_on != "completion" && loss_on != "assistant") {
    return absl::InvalidArgumentError(absl::StrCat("loss_on: ", Dump(loss_on), " is neither completion nor assistant"));
  }
  options.assistant_only = loss_on == "assistant";
  options.completion_only = true;
  return options;
}

size_t CommonPrefix(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  const auto end = std::mismatch(a.begin(), a.begin() + std::min(a.size(), b.size()), b.begin()).first;
  return static_cast<size_t>(end - a.begin());
}

void IgnorePrompt(const std::vector<int32_t>& prompt, TrlExample* example) {
  const size_t shared = CommonPrefix(prompt, example->ids);
  example->prompt_diverges = shared < prompt.size();
  std::fill_n(example->labels.begin(), shared, kIgnoreLabel);
}

absl::StatusOr<TrlExample> FromText(const Tokenizer& tokenizer, const json& row, const TrlOptions& options) {
  TrlExample example;
  ASSIGN_OR_RETURN(example.text, Text(row, "text"));
  ASSIGN_OR_RETURN(const bool special, Flag(row, "add_special_tokens", true));
  if (options.labels) {
    if (options.assistant_only) {
      return absl::InvalidArgumentError("loss_on: assistant needs messages, not a text");
    }
    const std::string eos = tokenizer.eos_token();
    if (!absl::EndsWith(example.text, eos)) example.text += eos;
  }
  ASSIGN_OR_RETURN(example.ids, tokenizer.Encode(example.text, special));
  if (options.labels) example.labels = example.ids;
  return example;
}

absl::StatusOr<TrlExample> FromTextPair(const Tokenizer& tokenizer, const json& row, const TrlOptions& options) {
  if (options.labels && options.assistant_only) {
    return absl::InvalidArgumentError("loss_on: assistant needs lists of messages, not texts");
  }
  ASSIGN_OR_RETURN(const std::string prompt, Text(row, "prompt"));
  ASSIGN_OR_RETURN(std::string completion, Text(row, "completion"));
  ASSIGN_OR_RETURN(const bool special, Flag(row, "add_special_tokens", true));
  const std::string eos = tokenizer.eos_token();
  if (!absl::EndsWith(completion, eos)) completion += eos;
  TrlExample example;
  example.text = absl::StrCat(prompt, completion);
  ASSIGN_OR_RETURN(example.ids, tokenizer.Encode(example.text, special));
  if (!options.labels) return example;
  example.labels = example.ids;
  if (options.completion_only) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> prompt_ids, tokenizer.Encode(prompt, special));
    IgnorePrompt(prompt_ids, &example);
  }
  return example;
}

absl::Status IgnoreAllButGenerated(const RenderedChat& rendered, const std::vector<bool>& marked, TrlExample* example) {
  if (std::find(marked.begin(), marked.end(), true) == marked.end()) {
    return absl::InvalidArgumentError(
        rendered.has_generation_blocks
            ? "loss_on: the chat template's {% generation %} blocks wrote no token of this row"
            : "loss_on: assistant needs a chat template with {% generation %} blocks around what the assistant writes; "
              "give one as chat_template, or train on the completion");
  }
  for (size_t i = 0; i < marked.size(); ++i) {
    if (!marked[i]) example->labels[i] = kIgnoreLabel;
  }
  return absl::OkStatus();
}

// `prompt` is the beginning of `messages`, as many as `prompt_turns`.
absl::StatusOr<TrlExample> FromMessages(const Tokenizer& tokenizer, const json& messages, size_t prompt_turns,
                                        const ChatOptions& chat, const TrlOptions& options) {
  ChatOptions whole = chat;
  whole.for_training = options.labels && options.assistant_only;
  ASSIGN_OR_RETURN(RenderedChat rendered, tokenizer.RenderChat(Dump(messages), whole));
  TrlExample example;
  if (!options.labels || !options.assistant_only) {
    ASSIGN_OR_RETURN(example.ids, tokenizer.Encode(rendered.text, false));
    if (options.labels) example.labels = example.ids;
  } else {
    ASSIGN_OR_RETURN(MarkedTokens tokens, tokenizer.EncodeMarked(rendered.text, false, rendered.generated));
    example.ids = std::move(tokens.ids);
    example.labels = example.ids;
    RETURN_IF_ERROR(IgnoreAllButGenerated(rendered, tokens.marked, &example));
  }
  if (options.labels && options.completion_only && prompt_turns > 0) {
    ChatOptions prompted = whole;
    prompted.add_generation_prompt = true;
    const json prompt(messages.begin(), messages.begin() + static_cast<std::ptrdiff_t>(prompt_turns));
    ASSIGN_OR_RETURN(const RenderedChat alone, tokenizer.RenderChat(Dump(prompt), prompted));
    ASSIGN_OR_RETURN(const std::vector<int32_t> prompt_ids, tokenizer.Encode(alone.text, false));
    IgnorePrompt(prompt_ids, &example);
  }
  example.text = std::move(rendered.text);
  return example;
}

absl::StatusOr<TrlExample> FromConversation(const Tokenizer& tokenizer, const json& row, TrlOptions options) {
  const json& messages = row["messages"];
  RETURN_IF_ERROR(CheckMessages(messages, "messages"));
  ASSIGN_OR_RETURN(ChatOptions chat, ReadChatOptions(row));
  ASSIGN_OR_RETURN(chat.add_generation_prompt, Flag(row, "add_generation_prompt", false));
  if (options.labels && options.completion_only && !options.assistant_only) {
    if (messages.empty()) return absl::InvalidArgumentError("messages: the list is empty");
    if (messages.back().value("role", json()) != "assistant") {
      return absl::InvalidArgumentError(absl::StrCat("messages: the last turn is ",
                                                     Dump(messages.back().value("role", json())),
                                                     "'s; only an assistant's can be trained"));
    }
  }
  if (options.assistant_only) options.completion_only = false;  // every turn that the template marks
  return FromMessages(tokenizer, messages, messages.empty() ? 0 : messages.size() - 1, chat, options);
}

absl::StatusOr<TrlExample> FromMessagePair(const Tokenizer& tokenizer, const json& row, const TrlOptions& options) {
  RETURN_IF_ERROR(CheckMessages(row["prompt"], "prompt"));
  RETURN_IF_ERROR(CheckMessages(row["completion"], "completion"));
  if (row["prompt"].empty()) return absl::InvalidArgumentError("prompt: the list is empty");
  if (row["completion"].empty()) return absl::InvalidArgumentError("completion: the list is empty");
  json messages = row["prompt"];
  for (const json& message : row["completion"]) messages.push_back(message);
  ASSIGN_OR_RETURN(const ChatOptions chat, ReadChatOptions(row));
  return FromMessages(tokenizer, messages, row["prompt"].size(), chat, options);
}

}  // namespace

absl::StatusOr<TrlExample> MakeTrlExample(const Tokenizer& tokenizer, const json& row, const TrlOptions& given) {
  if (!row.is_object()) return absl::InvalidArgumentError("the row is not a JSON object");
  ASSIGN_OR_RETURN(const TrlOptions options, ReadLoss(row, given));
  if (Has(row, "prompt")) {
    if (!Has(row, "completion")) return absl::InvalidArgumentError("a prompt without a completion");
    const bool texts = row["prompt"].is_string();
    if (texts != row["completion"].is_string()) {
      return absl::InvalidArgumentError("prompt and completion: one is a text and the other is not");
    }
    return texts ? FromTextPair(tokenizer, row, options) : FromMessagePair(tokenizer, row, options);
  }
  if (Has(row, "messages")) return FromConversation(tokenizer, row, options);
  if (Has(row, "text")) return FromText(tokenizer, row, options);
  return absl::InvalidArgumentError("the row has neither text, nor messages, nor prompt and completion");
}

}  // namespace retort
