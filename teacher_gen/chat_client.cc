#include "teacher_gen/chat_client.h"

#include <curl/curl.h>

#include <algorithm>
#include <cmath>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/check.h"
#include "common/json.h"
#include "common/text.h"

namespace retort {
namespace {

constexpr size_t kMaxQuotedBytes = 500;  // of a server's message, in ours

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

std::string StringField(const nlohmann::json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

int64_t CountField(const nlohmann::json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number_integer() ? std::max<int64_t>(0, it->get<int64_t>()) : 0;
}

absl::StatusOr<ChatReply> ParseCompletion(const std::string& body) {
  const absl::StatusOr<nlohmann::json> parsed = ParseJson(body, "reply");
  if (!parsed.ok()) return parsed.status();
  const auto bad = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("reply without ", what, ": ", ValidUtf8(body, kMaxQuotedBytes)));
  };
  if (!parsed->is_object() || !parsed->contains("choices") || !(*parsed)["choices"].is_array() ||
      (*parsed)["choices"].empty() || !(*parsed)["choices"][0].is_object())
    return bad("choices");
  const nlohmann::json& choice = (*parsed)["choices"][0];
  if (!choice.contains("message") || !choice["message"].is_object()) return bad("a message");
  const nlohmann::json& message = choice["message"];
  const bool has_content = message.contains("content") && message["content"].is_string();
  ChatReply reply;
  reply.text = StringField(message, "content");
  for (const char* key : {"reasoning_content", "reasoning"}) {
    if (reply.reasoning.empty()) reply.reasoning = StringField(message, key);
  }
  reply.finish_reason = StringField(choice, "finish_reason");
  if (reply.finish_reason.empty()) return bad("a finish_reason");
  // A model that was cut off while it reasoned has written no content yet.
  if (!has_content && reply.reasoning.empty() && StringField(message, "refusal").empty()) return bad("content");
  if (!has_content && reply.text.empty()) reply.text = StringField(message, "refusal");
  if (parsed->contains("usage") && (*parsed)["usage"].is_object()) {
    reply.prompt_tokens = CountField((*parsed)["usage"], "prompt_tokens");
    reply.completion_tokens = CountField((*parsed)["usage"], "completion_tokens");
  }
  return reply;
}

void InitCurlOnce() {
  static std::once_flag once;
  std::call_once(once, [] { RETORT_CHECK(curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK); });
}

// What the callbacks of one transfer write to.
struct Transfer {
  std::string body;
  std::string retry_after;
  int64_t max_bytes = 0;
  bool too_large = false;
  const std::atomic<bool>* cancelled = nullptr;
};

size_t OnBody(char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  if (static_cast<int64_t>(transfer.body.size() + size * count) > transfer.max_bytes) {
    transfer.too_large = true;
    return 0;
  }
  transfer.body.append(data, size * count);
  return size * count;
}

size_t OnHeader(char* data, size_t size, size_t count, void* user) {
  const absl::string_view line(data, size * count);
  constexpr absl::string_view kRetryAfter = "retry-after:";
  if (absl::StartsWithIgnoreCase(line, kRetryAfter)) {
    const absl::string_view value = absl::StripAsciiWhitespace(line.substr(kRetryAfter.size()));
    static_cast<Transfer*>(user)->retry_after.assign(value.data(), value.size());
  }
  return size * count;
}

int OnProgress(void* user, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  const auto* cancelled = static_cast<Transfer*>(user)->cancelled;
  return cancelled != nullptr && cancelled->load(std::memory_order_relaxed) ? 1 : 0;
}

}  // namespace

namespace internal {

JudgedReply JudgeReply(long http_status, const std::string& body) {
  if (http_status == 200) {
    absl::StatusOr<ChatReply> reply = ParseCompletion(body);
    const bool retry = !reply.ok();
    return {std::move(reply), retry};
  }
  const std::string said = absl::StrCat("HTTP ", http_status, ": ", MessageOf(body));
  if (http_status == 408 || http_status == 429 || http_status >= 500) return {absl::UnavailableError(said), true};
  if ((http_status == 400 || http_status == 413 || http_status == 422) && SaysContextTooLong(body))
    return {absl::OutOfRangeError(said), false};
  return {absl::FailedPreconditionError(said), false};
}

absl::Duration ParseRetryAfter(const std::string& value, absl::Time now) {
  double seconds = 0.0;
  if (absl::SimpleAtod(value, &seconds) && std::isfinite(seconds) && seconds >= 0.0) return absl::Seconds(seconds);
  const time_t when = value.empty() ? -1 : curl_getdate(value.c_str(), nullptr);
  if (when < 0) return absl::Seconds(-1);
  return std::max(absl::ZeroDuration(), absl::FromTimeT(when) - now);
}

}  // namespace internal

struct ChatClient::Attempt {
  internal::JudgedReply judged;
  absl::Duration retry_after = absl::Seconds(-1);
};

struct ChatClient::Handle {
  CURL* curl = nullptr;
  curl_slist* headers = nullptr;
  std::string url;
  std::mt19937_64 random{std::random_device{}()};
  ~Handle() {
    curl_slist_free_all(headers);
    if (curl != nullptr) curl_easy_cleanup(curl);
  }
};

ChatClient::ChatClient(ChatClientOptions options) : options_(std::move(options)), handle_(std::make_unique<Handle>()) {
  InitCurlOnce();
  handle_->curl = curl_easy_init();
  RETORT_CHECK(handle_->curl != nullptr);
  std::string base = options_.base_url;
  while (!base.empty() && base.back() == '/') base.pop_back();
  handle_->url = base + "/chat/completions";
  handle_->headers = curl_slist_append(handle_->headers, "Content-Type: application/json");
  // No "Expect: 100-continue": it costs a round trip a request.
  handle_->headers = curl_slist_append(handle_->headers, "Expect:");
  if (!options_.api_key.empty()) {
    handle_->headers =
        curl_slist_append(handle_->headers, absl::StrCat("Authorization: Bearer ", options_.api_key).c_str());
  }
}

ChatClient::~ChatClient() = default;

ChatClient::Attempt ChatClient::Try(const std::string& body) {
  CURL* curl = handle_->curl;
  Transfer transfer;
  transfer.max_bytes = options_.max_reply_bytes;
  transfer.cancelled = options_.cancelled;
  curl_easy_reset(curl);  // options only; the connection stays
  curl_easy_setopt(curl, CURLOPT_URL, handle_->url.c_str());
  curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, handle_->headers);
  curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body.data());
  curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
  curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS,
                   static_cast<long>(absl::ToInt64Milliseconds(std::min(options_.timeout, absl::Seconds(20)))));
  curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, static_cast<long>(absl::ToInt64Milliseconds(options_.timeout)));
  curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L);
  curl_easy_setopt(curl, CURLOPT_ACCEPT_ENCODING, "");
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &OnBody);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &OnHeader);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, &OnProgress);
  curl_easy_setopt(curl, CURLOPT_XFERINFODATA, &transfer);
  const CURLcode code = curl_easy_perform(curl);
  if (code == CURLE_OK) {
    long http_status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &http_status);
    return {internal::JudgeReply(http_status, transfer.body),
            internal::ParseRetryAfter(transfer.retry_after, absl::Now())};
  }
  if (code == CURLE_ABORTED_BY_CALLBACK) return {{absl::CancelledError("cancelled"), false}};
  if (transfer.too_large) {
    return {{absl::UnavailableError(absl::StrCat("a reply of more than ", options_.max_reply_bytes, " bytes")), true}};
  }
  const std::string failure = absl::StrCat("POST ", handle_->url, ": ", curl_easy_strerror(code));
  switch (code) {
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CACERT_BADFILE:
      return {{absl::FailedPreconditionError(failure), false}};
    default:
      return {{absl::UnavailableError(failure), true}};
  }
}

absl::Duration ChatClient::Backoff(int attempt) const {
  const absl::Duration most =
      std::min(options_.max_backoff, options_.initial_backoff * std::pow(2.0, std::min(attempt, 30)));
  const double random =
      options_.random ? options_.random() : std::uniform_real_distribution<double>(0.0, 1.0)(handle_->random);
  return most * (0.5 + 0.5 * random);
}

absl::StatusOr<ChatReply> ChatClient::Complete(const ChatRequest& request) {
  absl::StatusOr<nlohmann::json> messages = ParseJson(request.messages_json, "messages");
  if (!messages.ok()) return messages.status();
  const nlohmann::json body = {{"model", options_.model},
                               {"messages", *std::move(messages)},
                               {"temperature", request.temperature},
                               {"top_p", request.top_p},
                               {"max_tokens", request.max_tokens},
                               {"seed", request.seed},
                               {"n", 1},
                               {"stream", false}};
  const std::string text = body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const auto cancelled = [&] { return options_.cancelled != nullptr && options_.cancelled->load(); };
  for (int attempt = 1;; ++attempt) {
    Attempt tried = Try(text);
    if (tried.judged.reply.ok()) {
      tried.judged.reply->attempts = attempt;
      return tried.judged.reply;
    }
    if (!tried.judged.retry) return tried.judged.reply.status();
    if (attempt >= options_.max_attempts) {
      return absl::UnavailableError(absl::StrCat(
          "gave up after ", attempt, " attempts; the last: ", std::string(tried.judged.reply.status().message())));
    }
    absl::Duration wait = Backoff(attempt - 1);
    if (tried.retry_after >= absl::ZeroDuration())
      wait = std::max(wait, std::min(tried.retry_after, options_.max_retry_after));
    if (options_.sleep) {
      options_.sleep(wait);
    } else {
      for (const absl::Time until = absl::Now() + wait; absl::Now() < until && !cancelled();)
        absl::SleepFor(std::min(absl::Milliseconds(100), until - absl::Now()));
    }
    if (cancelled()) return absl::CancelledError("cancelled");
  }
}

}  // namespace retort
