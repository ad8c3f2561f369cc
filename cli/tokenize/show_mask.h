// Token by token, which are trained.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer.h"

namespace retort::cli {

// A token, or the few that make one character.
struct ShownToken {
  std::string text;  // control characters escaped; a line break is "\n" and a break
  bool trained = false;
};

// `labels` as long as `ids`. Errors: those of Tokenizer::Decode.
absl::StatusOr<std::vector<ShownToken>> ShowTokens(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
                                                   const std::vector<int32_t>& labels);

// In colour, or "untrained|" and "[trained]". `at_most`: the middle of a longer sample is left out; 0: never.
std::string MaskText(const std::vector<ShownToken>& tokens, bool color, size_t at_most = 0);

}  // namespace retort::cli
