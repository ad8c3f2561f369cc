// What an endpoint answers to a chat completion: a stream of server-sent events, or one JSON document.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace retort {

struct ChatReply {
  std::string text;
  std::string reasoning;  // reasoning_content or reasoning, where the endpoint gives it apart
  std::string finish_reason;
  int64_t prompt_tokens = 0;  // 0 where the endpoint does not say
  int64_t completion_tokens = 0;
  int attempts = 1;
  absl::Time began;  // when the attempt that was answered was sent
};

struct JudgedReply {
  absl::StatusOr<ChatReply> reply;
  bool retry = false;  // another attempt may help
};

// Reads one reply as its bytes come, whichever form it has. Not thread-safe.
class ChatReplyReader {
 public:
  // Holds `max_bytes` of the reply at most, and takes 16 times as many from a stream, whose events are longer than the
  // text in them. `first_token_only`: the first token that a stream brings is all that is wanted.
  ChatReplyReader(int64_t max_bytes, bool first_token_only)
      : max_bytes_(max_bytes), first_token_only_(first_token_only) {}

  // False: no more is wanted.
  bool Append(absl::string_view bytes);
  // What was wanted is here: what becomes of the connection after that does not matter. A document's end is the
  // connection's business.
  bool whole() const { return enough_ || (streamed_ == true && !too_large_ && !reply_.finish_reason.empty()); }
  // A stream has begun and is not whole.
  bool broke_off() const { return streamed_ == true && !whole(); }
  // Once the transfer has ended. A stream without a finish_reason has been broken off. Errors:
  //   kUnavailable        in passing: 408, 429, 5xx, a reply that is broken or too large; `retry` is set
  //   kOutOfRange         the prompt does not fit the model's context
  //   kInvalidArgument    this request is refused (400, 413, 422): the server's message
  //   kFailedPrecondition every request is (401, 403, 404, ...): the server's message
  JudgedReply Judge(long http_status);

 private:
  void TakeLines();
  void OnLine(absl::string_view line);
  void OnEvent(const std::string& data);
  void OnChoice(const nlohmann::json& choice);

  const int64_t max_bytes_;
  const bool first_token_only_;
  std::optional<bool> streamed_;  // not known before the first bytes
  std::string body_;              // the document, or what a stream has sent of its next line
  size_t scanned_ = 0;            // of body_: holds no end of a line
  std::string data_;              // of the event whose end has not come
  int64_t bytes_ = 0;
  bool too_large_ = false;
  bool enough_ = false;
  bool has_content_ = false;
  std::string refusal_;
  ChatReply reply_;
  std::optional<JudgedReply> failure_;  // that an event told
};

}  // namespace retort
