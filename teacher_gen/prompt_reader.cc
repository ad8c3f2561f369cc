#include "teacher_gen/prompt_reader.h"

#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/json.h"
#include "common/status.h"

namespace retort {
namespace {

using nlohmann::ordered_json;

// Keys stay in the user's order: chat templates may print them.
absl::StatusOr<ordered_json> Messages(const ordered_json& problem, const std::string& field, const std::string& system,
                                      const std::string& instruction) {
  ordered_json messages = ordered_json::array();
  if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
  if (problem.is_string()) {
    messages.push_back({{"role", "user"}, {"content", problem}});
  } else if (problem.is_array() && !problem.empty()) {
    for (const auto& message : problem) {
      if (!message.is_object() || !message.contains("role") || !message["role"].is_string() ||
          !message.contains("content") || !message["content"].is_string())
        return absl::InvalidArgumentError(absl::StrCat(field, ": a message needs role and content, both text"));
      messages.push_back(message);
    }
  } else {
    return absl::InvalidArgumentError(absl::StrCat(field, ": must be text or a list of messages"));
  }
  ordered_json& last = messages.back();
  if (last["role"] != "user")
    return absl::InvalidArgumentError(absl::StrCat(field, ": the last message must be the user's"));
  if (!instruction.empty()) last["content"] = last["content"].get<std::string>() + "\n\n" + instruction;
  return messages;
}

}  // namespace

absl::Status AppendPrompts(const v1::PromptSource& source, const std::string& path, const std::string& system,
                           const std::string& instruction, std::vector<v1::Prompt>& prompts) {
  const std::string prompt_field = source.prompt_field().empty() ? "prompt" : source.prompt_field();
  const std::string answer_field = source.answer_field().empty() ? "answer" : source.answer_field();
  const size_t before = prompts.size();
  const absl::Status read =
      ForEachJsonLine(path, [&](int64_t line, absl::string_view text, const nlohmann::json& checked) -> absl::Status {
        if (!checked.is_object()) return absl::InvalidArgumentError("the row is not a JSON object");
        const ordered_json row = ordered_json::parse(text);
        if (!row.contains(prompt_field))
          return absl::InvalidArgumentError(absl::StrCat("the row has no field \"", prompt_field, "\" (prompt_field)"));
        ASSIGN_OR_RETURN(const ordered_json messages, Messages(row[prompt_field], prompt_field, system, instruction));
        v1::Prompt prompt;
        prompt.set_row_json(std::string(text));
        prompt.set_messages_json(messages.dump());
        if (row.contains(answer_field)) {
          const ordered_json& answer = row[answer_field];
          prompt.set_answer(answer.is_string() ? answer.get<std::string>() : answer.is_null() ? "" : answer.dump());
        }
        prompts.push_back(std::move(prompt));
        return absl::OkStatus();
      });
  if (!read.ok()) {
    // The user knows the file by the name in the job, not by where its contents were fetched to.
    return absl::Status(read.code(), absl::StrReplaceAll(std::string(read.message()), {{path, source.path()}}));
  }
  const double weight = source.weight() > 0.0 ? source.weight() : 1.0;
  const auto rows = static_cast<double>(prompts.size() - before);
  prompts.resize(before + static_cast<size_t>(std::floor(std::min(weight, 1.0) * rows + 1e-9)));
  return absl::OkStatus();
}

}  // namespace retort
