// One connection to an OpenAI-compatible endpoint.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "teacher_gen/chat_reply.h"

namespace retort {

struct ChatClientOptions {
  std::string base_url;  // "http://host:8000/v1"
  std::string model;
  std::string api_key;                         // sent as a bearer token; empty: none
  absl::Duration timeout = absl::Minutes(10);  // of silence: an attempt ends when no byte has come for so long
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
  uint32_t seed = 0;              // below 2^31: some servers read a signed 32-bit number
  int max_attempts = 0;           // 0: the client's
  bool first_token_only = false;  // the answer is cut off after its first token, where the endpoint streams
};

// Not thread-safe; each thread has its own, and its connection is kept open between requests.
class ChatClient {
 public:
  explicit ChatClient(ChatClientOptions options);
  ~ChatClient();

  // Asks for a stream, which shows that a long answer is under way; takes a plain reply too. Tries again, with jittered
  // exponential back-off (or as long as Retry-After says), after what passes: no connection, a broken one, silence,
  // 408, 429, 5xx, a reply that is not whole or not JSON. A stream that broke off is followed by a request for a plain
  // reply, and where that is answered by more of them: there are servers that end a stream when the next request comes
  // (llama-cpp-python's). `failing_since`, where given, is set to the first such
  // failure. Errors:
  //   kUnavailable        still failing after max_attempts; says how it failed last
  //   kOutOfRange, kInvalidArgument, kFailedPrecondition  refused, as ChatReplyReader::Judge says
  //   kCancelled
  absl::StatusOr<ChatReply> Complete(const ChatRequest& request, absl::Time* failing_since = nullptr);

 private:
  struct Attempt;
  Attempt Try(const std::string& body, bool first_token_only);
  bool cancelled() const { return options_.cancelled != nullptr && options_.cancelled->load(); }
  absl::Duration Backoff(int attempt) const;

  const ChatClientOptions options_;
  struct Handle;
  const std::unique_ptr<Handle> handle_;
  bool asks_for_usage_ = true;  // until the server refuses stream_options
  int plain_requests_ = 0;      // so many of the next ones begin with a plain reply
};

namespace internal {

// Seconds or an HTTP date; a negative duration where the header says nothing usable.
absl::Duration ParseRetryAfter(const std::string& value, absl::Time now);

}  // namespace internal

}  // namespace retort
