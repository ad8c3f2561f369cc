// Text to token ids and back, and chat templates: the reference implementations (Hugging Face tokenizers, minijinja)
// behind a C ABI.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace retort {

// One turn of a conversation.
struct ChatMessage {
  std::string role;
  std::string content;
};

// Thread-safe.
class Tokenizer {
 public:
  // Reads tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat_template.jinja of a HF folder; weights
  // are not needed. A folder without a chat template is fine until one is asked for. `now` is what templates take for
  // the present (strftime_now, in UTC): a job gives the same to all of its processes, so that their prompts agree.
  // Errors: kNotFound, kInvalidArgument.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& folder, absl::Time now = absl::Now());
  virtual ~Tokenizer() = default;

  virtual absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, bool add_special_tokens) const = 0;
  // One list for each text; Load's tokenizer uses every core.
  virtual absl::StatusOr<std::vector<std::vector<int32_t>>> EncodeBatch(const std::vector<std::string>& texts,
                                                                        bool add_special_tokens) const;
  // Errors: kInvalidArgument (an id outside the vocabulary).
  virtual absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const = 0;
  // As transformers' apply_chat_template(tokenize=False): byte for byte. `messages_json` is a JSON list of messages as
  // the user wrote them. Errors: kInvalidArgument (the template raises: its message), kFailedPrecondition (no
  // template), kResourceExhausted (the template does not end or writes too much).
  virtual absl::StatusOr<std::string> ApplyChatTemplate(absl::string_view messages_json,
                                                        bool add_generation_prompt) const = 0;

  virtual int64_t vocab_size() const = 0;  // with added tokens
  // -1 when the tokenizer has none of that name.
  virtual int32_t TokenToId(absl::string_view token) const = 0;
  virtual int32_t eos_token_id() const = 0;  // tokenizer_config.json's eos_token; -1: none
};

std::string MessagesToJson(const std::vector<ChatMessage>& messages);

}  // namespace retort
