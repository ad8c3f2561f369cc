// One connection to an OpenAI-compatible endpoint.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace retort {

struct ChatClientOptions {
  std::string base_url;  // "http://host:8000/v1"
  std::string model;
  std::string api_key;                         // sent as a bearer token; empty: none
  absl::Duration timeout = absl::Minutes(10);  // of one attempt
  int max_attempts = 9;                        // the first and eight more
  absl::Duration initial_backoff = absl::Milliseconds(500);
  absl::Duration max_backoff = absl::Seconds(30);
  absl::Duration max_retry_after = absl::Minutes(5);  // a server that asks for more is asked again after this
  int64_t max_reply_bytes = int64_t{64} << 20;
  // Ends waits and transfers when it becomes true; may be null. Outlives the client.
  const std::atomic<bool>* cancelled = nullptr;

  // For tests. Empty functions mean the real thing.
  std::function<void(absl::Duration)> sleep;
  std::function<double()> random;  // [0, 1)
};

struct ChatRequest {
  std::string messages_json;
  double temperature = 0.0;
  double top_p = 1.0;
  int64_t max_tokens = 0;
  uint32_t seed = 0;  // below 2^31: some servers read a signed 32-bit number
};

struct ChatReply {
  std::string text;
  std::string reasoning;  // reasoning_content or reasoning, where the endpoint gives it apart
  std::string finish_reason;
  int64_t prompt_tokens = 0;  // 0 where the endpoint does not say
  int64_t completion_tokens = 0;
  int attempts = 1;
};

// Not thread-safe; each thread has its own, and its connection is kept open between requests.
class ChatClient {
 public:
  explicit ChatClient(ChatClientOptions options);
  ~ChatClient();

  // Tries again, with jittered exponential back-off (or as long as Retry-After says), after: no connection, a broken
  // one, a time-out, 408, 429, 5xx, a reply that is not whole or not JSON. Errors:
  //   kUnavailable        still failing after max_attempts; says how it failed last
  //   kOutOfRange         the prompt does not fit the model's context
  //   kFailedPrecondition the endpoint refuses for good (400, 401, 403, 404, ...): its message; other prompts would
  //   fare
  //                       the same
  //   kCancelled
  absl::StatusOr<ChatReply> Complete(const ChatRequest& request);

 private:
  struct Attempt;
  Attempt Try(const std::string& body);
  absl::Duration Backoff(int attempt) const;

  const ChatClientOptions options_;
  struct Handle;
  const std::unique_ptr<Handle> handle_;
};

namespace internal {

// What a reply's HTTP status and body mean. `retry` is set where another attempt may help.
struct JudgedReply {
  absl::StatusOr<ChatReply> reply;
  bool retry = false;
};
JudgedReply JudgeReply(long http_status, const std::string& body);

// Seconds or an HTTP date; a negative duration where the header says nothing usable.
absl::Duration ParseRetryAfter(const std::string& value, absl::Time now);

}  // namespace internal

}  // namespace retort
