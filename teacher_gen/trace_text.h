// Token ids that a model wrote, as text for people and for training.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/tokenizer.h"

namespace retort {

// Leaves special tokens out, but keeps <think> and </think> also where the tokenizer counts them as special: they are
// what a student learns. Ids that the tokenizer does not know (embeddings are often padded beyond its vocabulary, and a
// bad model picks them) are left out, as Hugging Face does. Does not own the tokenizer. Not thread-safe.
class TraceText {
 public:
  explicit TraceText(const Tokenizer& tokenizer);

  absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids);

  // The same for what follows `prompt`: where that ends in "<think>" (and white space), as R1's templates end it, the
  // text begins with it, unless the model itself wrote one.
  absl::StatusOr<std::string> DecodeAfter(const std::vector<int32_t>& prompt, const std::vector<int32_t>& ids);

 private:
  absl::StatusOr<bool> IsSpecial(int32_t id);

  const Tokenizer& tokenizer_;
  std::vector<int32_t> kept_;  // special tokens that are kept
  std::map<int32_t, bool> special_;
};

// What an endpoint wrote, with the "<think>\n" in front that its template keeps from the reply: where the text closes
// what it has not opened.
std::string WithOpenedThink(absl::string_view text);

}  // namespace retort
