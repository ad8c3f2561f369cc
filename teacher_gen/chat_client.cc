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
#include "common/status.h"

namespace retort {
namespace {

// How soon a transfer notices that it is cancelled.
constexpr absl::Duration kPollInterval = absl::Milliseconds(200);
// Where plain replies come and streams break off, streams are tried again after so many requests.
constexpr int kPlainRequests = 32;

void InitCurlOnce() {
  static std::once_flag once;
  std::call_once(once, [] { RETORT_CHECK(curl_global_init(CURL_GLOBAL_DEFAULT) == CURLE_OK); });
}

// What the callbacks of one transfer write to.
struct Transfer {
  ChatReplyReader reader;
  std::string retry_after;
  int64_t bytes_read = 0;
  bool silent = false;  // for the whole time-out
};

size_t OnBody(char* data, size_t size, size_t count, void* user) {
  auto& transfer = *static_cast<Transfer*>(user);
  transfer.bytes_read += static_cast<int64_t>(size * count);
  return transfer.reader.Append({data, size * count}) ? size * count : 0;
}

size_t OnHeader(char* data, size_t size, size_t count, void* user) {
  const absl::string_view line(data, size * count);
  auto& transfer = *static_cast<Transfer*>(user);
  transfer.bytes_read += static_cast<int64_t>(line.size());
  constexpr absl::string_view kRetryAfter = "retry-after:";
  if (absl::StartsWithIgnoreCase(line, kRetryAfter)) {
    const absl::string_view value = absl::StripAsciiWhitespace(line.substr(kRetryAfter.size()));
    transfer.retry_after.assign(value.data(), value.size());
  }
  return size * count;
}

}  // namespace

namespace internal {

absl::Duration ParseRetryAfter(const std::string& value, absl::Time now) {
  double seconds = 0.0;
  if (absl::SimpleAtod(value, &seconds) && std::isfinite(seconds) && seconds >= 0.0) return absl::Seconds(seconds);
  const time_t when = value.empty() ? -1 : curl_getdate(value.c_str(), nullptr);
  if (when < 0) return absl::Seconds(-1);
  return std::max(absl::ZeroDuration(), absl::FromTimeT(when) - now);
}

}  // namespace internal

struct ChatClient::Attempt {
  JudgedReply judged;
  absl::Duration retry_after = absl::Seconds(-1);
  bool broke_off = false;  // a stream that had begun ended before its answer did
};

struct ChatClient::Handle {
  CURL* curl = nullptr;
  CURLM* multi = nullptr;  // holds the connection
  curl_slist* headers = nullptr;
  std::string url;
  std::mt19937_64 random{std::random_device{}()};
  ~Handle() {
    curl_slist_free_all(headers);
    if (curl != nullptr) curl_easy_cleanup(curl);
    if (multi != nullptr) curl_multi_cleanup(multi);
  }

  // Runs what `curl` was set up for. Errors: CURLE_ABORTED_BY_CALLBACK (cancelled), CURLE_OPERATION_TIMEDOUT (silent
  // for `timeout`, or no connection), curl's own.
  CURLcode Perform(Transfer& transfer, absl::Duration timeout, const std::atomic<bool>* cancelled) {
    if (curl_multi_add_handle(multi, curl) != CURLM_OK) return CURLE_FAILED_INIT;
    CURLcode result = CURLE_FAILED_INIT;
    int64_t moved = -1;
    absl::Time silent_since = absl::Now();
    for (;;) {
      int running = 0;
      if (curl_multi_perform(multi, &running) != CURLM_OK) break;
      int left = 0;
      if (const CURLMsg* message = curl_multi_info_read(multi, &left); message != nullptr) {
        result = message->data.result;
        break;
      }
      if (cancelled != nullptr && cancelled->load(std::memory_order_relaxed)) {
        result = CURLE_ABORTED_BY_CALLBACK;
        break;
      }
      curl_off_t sent = 0;
      curl_easy_getinfo(curl, CURLINFO_SIZE_UPLOAD_T, &sent);
      const absl::Time now = absl::Now();
      if (transfer.bytes_read + sent != moved) {
        moved = transfer.bytes_read + sent;
        silent_since = now;
      }
      const absl::Duration left_of_timeout = silent_since + timeout - now;
      if (left_of_timeout <= absl::ZeroDuration()) {
        transfer.silent = true;
        result = CURLE_OPERATION_TIMEDOUT;
        break;
      }
      const absl::Duration wait = std::min(kPollInterval, left_of_timeout) + absl::Milliseconds(1);
      if (curl_multi_poll(multi, nullptr, 0, static_cast<int>(absl::ToInt64Milliseconds(wait)), nullptr) != CURLM_OK)
        break;
    }
    curl_multi_remove_handle(multi, curl);
    return result;
  }
};

ChatClient::ChatClient(ChatClientOptions options) : options_(std::move(options)), handle_(std::make_unique<Handle>()) {
  InitCurlOnce();
  handle_->curl = curl_easy_init();
  handle_->multi = curl_multi_init();
  RETORT_CHECK(handle_->curl != nullptr && handle_->multi != nullptr);
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

ChatClient::Attempt ChatClient::Try(const std::string& body, bool first_token_only) {
  CURL* curl = handle_->curl;
  Transfer transfer{ChatReplyReader(options_.max_reply_bytes, first_token_only), {}};
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
  curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L);
  curl_easy_setopt(curl, CURLOPT_ACCEPT_ENCODING, "");
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, &OnBody);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &transfer);
  curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, &OnHeader);
  curl_easy_setopt(curl, CURLOPT_HEADERDATA, &transfer);
  const CURLcode code = handle_->Perform(transfer, options_.timeout, options_.cancelled);
  if (code == CURLE_ABORTED_BY_CALLBACK) return {{absl::CancelledError("cancelled"), false}};
  // A reader that wants no more breaks the transfer off: CURLE_WRITE_ERROR.
  if (code == CURLE_OK || code == CURLE_WRITE_ERROR || transfer.reader.whole()) {
    long http_status = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &http_status);
    const bool broke_off = transfer.reader.broke_off();
    return {transfer.reader.Judge(http_status), internal::ParseRetryAfter(transfer.retry_after, absl::Now()),
            broke_off};
  }
  if (transfer.silent) {
    return {{absl::UnavailableError(
                 absl::StrCat("POST ", handle_->url, ": not a byte for ", absl::FormatDuration(options_.timeout))),
             true}};
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
      return {{absl::UnavailableError(failure), true}, absl::Seconds(-1), transfer.reader.broke_off()};
  }
}

absl::Duration ChatClient::Backoff(int attempt) const {
  const absl::Duration most =
      std::min(options_.max_backoff, options_.initial_backoff * std::pow(2.0, std::min(attempt, 30)));
  const double random =
      options_.random ? options_.random() : std::uniform_real_distribution<double>(0.0, 1.0)(handle_->random);
  return most * (0.5 + 0.5 * random);
}

absl::StatusOr<ChatReply> ChatClient::Complete(const ChatRequest& request, absl::Time* failing_since) {
  // Only their form is checked here: the endpoint gets their keys in the order in which they stand.
  RETURN_IF_ERROR(ParseJson(request.messages_json, "messages").status());
  nlohmann::ordered_json body = {{"model", options_.model},
                                 {"messages", nlohmann::ordered_json::parse(request.messages_json)},
                                 {"temperature", request.temperature},
                                 {"top_p", request.top_p},
                                 {"max_tokens", request.max_tokens},
                                 {"seed", request.seed},
                                 {"n", 1}};
  bool plain = plain_requests_ > 0;
  plain_requests_ = std::max(0, plain_requests_ - 1);
  const int max_attempts = request.max_attempts > 0 ? request.max_attempts : options_.max_attempts;
  for (int attempt = 1;; ++attempt) {
    const absl::Time began = absl::Now();
    body["stream"] = !plain;
    body.erase("stream_options");
    if (!plain && asks_for_usage_) body["stream_options"] = {{"include_usage", true}};
    Attempt tried =
        Try(body.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace), request.first_token_only);
    if (tried.judged.reply.ok()) {
      if (plain && attempt > 1) plain_requests_ = kPlainRequests;
      tried.judged.reply->attempts = attempt;
      tried.judged.reply->began = began;
      return std::move(tried.judged.reply);
    }
    const std::string said(tried.judged.reply.status().message());
    if (asks_for_usage_ && absl::IsInvalidArgument(tried.judged.reply.status()) &&
        absl::StrContains(said, "stream_options")) {
      asks_for_usage_ = false;
      --attempt;
      continue;
    }
    if (!tried.judged.retry) return tried.judged.reply.status();
    plain = tried.broke_off;
    if (attempt == 1 && failing_since != nullptr) *failing_since = absl::Now();
    if (attempt >= max_attempts)
      return absl::UnavailableError(absl::StrCat("gave up after ", attempt, " attempts; the last: ", said));
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
