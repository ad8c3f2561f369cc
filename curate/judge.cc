#include "curate/judge.h"

#include <nlohmann/json.hpp>

#include "common/json.h"

namespace retort::curate {

bool ModelScore::Add(const v1::Prompt& prompt, const v1::Trace& trace) {
  ++added_;
  if (trace.finish_reason() == "error") {
    Count("error", 1);
    return false;
  }
  switch (verifier_.Verify(trace.text(), prompt.answer(), trace.finish_reason() == "length")) {
    case Verdict::kCorrect:
      ++correct_;
      Count("correct", 1);
      return true;
    case Verdict::kWrong:
      Count("wrong", 1);
      return false;
    case Verdict::kNoAnswer:
      Count("no_answer", 1);
      return false;
    case Verdict::kNoReference:
      Count("no_reference", 1);
      return false;
  }
  return false;
}

double ModelScore::Finish(int64_t sample_count) {
  if (sample_count > added_) Count("missing", sample_count - added_);
  // Every prompt has the same number of samples, so the mean of means is the mean.
  return sample_count == 0 ? 0.0 : static_cast<double>(correct_) / static_cast<double>(sample_count);
}

void ModelScore::AddOutcomes(std::map<std::string, int64_t>* outcomes) const {
  for (const auto& [name, count] : counts_) (*outcomes)[name] += count;
}

std::string UserTurn(const v1::Prompt& prompt) {
  const auto messages = ParseJson(prompt.messages_json(), "messages");
  if (!messages.ok() || !messages->is_array()) return prompt.messages_json();
  for (auto message = messages->rbegin(); message != messages->rend(); ++message) {
    if (message->is_object() && message->value("role", nlohmann::json()) == "user" && message->contains("content") &&
        (*message)["content"].is_string()) {
      return (*message)["content"].get<std::string>();
    }
  }
  return prompt.messages_json();
}

}  // namespace retort::curate
