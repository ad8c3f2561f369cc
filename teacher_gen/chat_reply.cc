#include "teacher_gen/chat_reply.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/json.h"
#include "common/text.h"

namespace retort {
namespace {

constexpr size_t kMaxQuotedBytes = 500;  // of a server's message, in ours
constexpr int64_t kStreamBytesPerHeld = 16;

std::string MessageOf(const std::string& body) {
  const absl::StatusOr<nlohmann::json> parsed = ParseJson(body, "error reply");
  if (parsed.ok() && parsed->is_object()) {
    for (const char* key : {"error", "message", "detail"}) {
      if (!parsed->contains(key)) continue;
      const nlohmann::json& value = (*parsed)[key];
      if (value.is_string()) return ValidUtf8(value.get<std::string>(), kMaxQuotedBytes);
      if (value.is_object() && value.contains("message") && value["message"].is_string())
        return ValidUtf8(value["message"].get<std::string>(), kMaxQuotedBytes);
    }
  }
  return ValidUtf8(body, kMaxQuotedBytes);
}

// How vLLM, SGLang, llama.cpp and OpenAI say that a prompt is too long.
bool SaysContextTooLong(const std::string& body) {
  const std::string lower = absl::AsciiStrToLower(body);
  for (const char* sign :
       {"context_length_exceeded", "context length", "context window", "context size", "maximum context",
        "longer than the maximum", "maximum model length", "max_model_len", "input is too long", "prompt is too long",
        "exceed_context_size", "maximum allowed length"}) {
    if (absl::StrContains(lower, sign)) return true;
  }
  return false;
}

JudgedReply JudgeFailure(long http_status, const std::string& body) {
  const std::string said = absl::StrCat("HTTP ", http_status, ": ", MessageOf(body));
  if (http_status == 408 || http_status == 429 || http_status >= 500) return {absl::UnavailableError(said), true};
  if (http_status != 400 && http_status != 413 && http_status != 422) return {absl::FailedPreconditionError(said)};
  if (SaysContextTooLong(body)) return {absl::OutOfRangeError(said)};
  return {absl::InvalidArgumentError(said)};
}

// Gateways, and engines that fail once they have begun, say so under a status of 200.
std::optional<JudgedReply> ToldFailure(const nlohmann::json& object) {
  const auto error = object.find("error");
  const bool apart = error != object.end() && !error->is_null();
  if (!apart && object.value("object", nlohmann::json()) != "error") return std::nullopt;
  const nlohmann::json& what = apart && error->is_object() ? *error : object;
  const auto code = what.find("code");
  const bool coded = code != what.end() && code->is_number_integer() && *code >= 400 && *code < 600;
  return JudgeFailure(coded ? code->get<long>() : 500,
                      object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

std::string StringField(const nlohmann::json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

int64_t CountField(const nlohmann::json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number_integer() ? std::max<int64_t>(0, it->get<int64_t>()) : 0;
}

// Some servers send it under both names.
std::string ReasoningOf(const nlohmann::json& message) {
  const std::string reasoning = StringField(message, "reasoning_content");
  return reasoning.empty() ? StringField(message, "reasoning") : reasoning;
}

void ReadUsage(const nlohmann::json& object, ChatReply& reply) {
  const auto usage = object.find("usage");
  if (usage == object.end() || !usage->is_object()) return;
  reply.prompt_tokens = CountField(*usage, "prompt_tokens");
  reply.completion_tokens = CountField(*usage, "completion_tokens");
}

JudgedReply Broken(absl::string_view what) { return {absl::UnavailableError(what), true}; }

JudgedReply ParseDocument(const std::string& body) {
  const absl::StatusOr<nlohmann::json> parsed = ParseJson(body, "reply");
  if (!parsed.ok()) return Broken(parsed.status().message());
  const auto without = [&](absl::string_view what) {
    return Broken(absl::StrCat("reply without ", what, ": ", ValidUtf8(body, kMaxQuotedBytes)));
  };
  if (!parsed->is_object()) return without("choices");
  if (auto failure = ToldFailure(*parsed)) return *std::move(failure);
  if (!parsed->contains("choices") || !(*parsed)["choices"].is_array() || (*parsed)["choices"].empty() ||
      !(*parsed)["choices"][0].is_object())
    return without("choices");
  const nlohmann::json& choice = (*parsed)["choices"][0];
  if (!choice.contains("message") || !choice["message"].is_object()) return without("a message");
  const nlohmann::json& message = choice["message"];
  const bool has_content = message.contains("content") && message["content"].is_string();
  ChatReply reply;
  reply.text = StringField(message, "content");
  reply.reasoning = ReasoningOf(message);
  reply.finish_reason = StringField(choice, "finish_reason");
  if (reply.finish_reason.empty()) return without("a finish_reason");
  // A model that was cut off while it reasoned has written no content yet.
  if (!has_content && reply.reasoning.empty() && StringField(message, "refusal").empty()) return without("content");
  if (!has_content) reply.text = StringField(message, "refusal");
  ReadUsage(*parsed, reply);
  return {std::move(reply)};
}

}  // namespace

bool ChatReplyReader::Append(absl::string_view bytes) {
  bytes_ += static_cast<int64_t>(bytes.size());
  body_.append(bytes.data(), bytes.size());
  if (!streamed_.has_value()) {
    const absl::string_view begun = absl::StripLeadingAsciiWhitespace(body_);
    constexpr absl::string_view kFields[] = {":", "data:", "event:", "id:", "retry:"};
    constexpr size_t kLongest = 6;
    if (begun.size() >= kLongest) {
      streamed_ = std::any_of(std::begin(kFields), std::end(kFields),
                              [&](absl::string_view field) { return absl::StartsWith(begun, field); });
    }
  }
  if (streamed_ == true) TakeLines();
  const size_t held = body_.size() + data_.size() + reply_.text.size() + reply_.reasoning.size() + refusal_.size();
  too_large_ = static_cast<int64_t>(held) > max_bytes_ || bytes_ / kStreamBytesPerHeld > max_bytes_;
  return !too_large_ && !enough_;
}

void ChatReplyReader::TakeLines() {
  size_t begin = 0;
  for (size_t end = body_.find('\n', scanned_); end != std::string::npos; end = body_.find('\n', begin)) {
    absl::string_view line = absl::string_view(body_).substr(begin, end - begin);
    absl::ConsumeSuffix(&line, "\r");
    OnLine(line);
    begin = end + 1;
  }
  body_.erase(0, begin);
  scanned_ = body_.size();
}

void ChatReplyReader::OnLine(absl::string_view line) {
  if (line.empty()) {
    if (!data_.empty()) OnEvent(std::exchange(data_, {}));
  } else if (absl::ConsumePrefix(&line, "data:")) {
    absl::ConsumePrefix(&line, " ");
    absl::StrAppend(&data_, data_.empty() ? "" : "\n", line);
  }
}

void ChatReplyReader::OnEvent(const std::string& data) {
  if (failure_.has_value() || data == "[DONE]") return;
  const absl::StatusOr<nlohmann::json> event = ParseJson(data, "event of the reply");
  if (!event.ok() || !event->is_object()) {
    failure_ = Broken(absl::StrCat("an event that is no JSON object: ", ValidUtf8(data, kMaxQuotedBytes)));
    return;
  }
  failure_ = ToldFailure(*event);
  if (failure_.has_value()) return;
  const auto choices = event->find("choices");
  if (choices != event->end() && choices->is_array()) {
    for (const nlohmann::json& choice : *choices)
      if (choice.is_object() && CountField(choice, "index") == 0) OnChoice(choice);
  }
  ReadUsage(*event, reply_);
}

void ChatReplyReader::OnChoice(const nlohmann::json& choice) {
  const auto delta = choice.find("delta");
  if (delta != choice.end() && delta->is_object()) {
    const auto content = delta->find("content");
    has_content_ = has_content_ || (content != delta->end() && content->is_string());
    reply_.text += StringField(*delta, "content");
    reply_.reasoning += ReasoningOf(*delta);
    refusal_ += StringField(*delta, "refusal");
  }
  if (const std::string reason = StringField(choice, "finish_reason"); !reason.empty()) reply_.finish_reason = reason;
  enough_ = first_token_only_ &&
            !(reply_.text.empty() && reply_.reasoning.empty() && refusal_.empty() && reply_.finish_reason.empty());
}

JudgedReply ChatReplyReader::Judge(long http_status) {
  if (too_large_) return Broken(absl::StrCat("a reply of more than ", max_bytes_, " bytes"));
  if (streamed_ == true) {
    OnLine(body_);
    OnLine("");  // an event that the connection's end has ended
    body_.clear();
  }
  if (http_status != 200) {
    return JudgeFailure(http_status, failure_.has_value() ? std::string(failure_->reply.status().message()) : body_);
  }
  if (failure_.has_value()) return *failure_;
  JudgedReply judged = streamed_ == true ? JudgedReply{reply_} : ParseDocument(body_);
  if (!judged.reply.ok() || enough_) return judged;
  ChatReply& reply = *judged.reply;
  if (streamed_ == true) {
    if (reply.finish_reason.empty()) return Broken("the stream broke off: it ended without a finish_reason");
    if (!has_content_ && reply.reasoning.empty() && refusal_.empty()) return Broken("stream without content");
    if (!has_content_) reply.text = refusal_;
  }
  // A server that is stopped ends its requests so.
  if (reply.finish_reason == "abort" || reply.finish_reason == "error")
    return Broken(absl::StrCat("the server gave the request up: finish_reason ", reply.finish_reason));
  return judged;
}

}  // namespace retort
