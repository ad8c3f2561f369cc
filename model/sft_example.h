// A conversation as a training example: token ids and which of them are trained.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer.h"
#include "model/trl_example.h"

namespace retort {

struct TrainingExample {
  std::vector<int32_t> input_ids;
  std::vector<int32_t> labels;  // as long as input_ids, not shifted; kIgnoreLabel where not trained
};

// Rows are ordered: templates may print a message's keys. {"messages": [...]}, the last of role assistant: only that
// turn is trained, with what ends it (EOS, as the template writes it), and its content stands in the ids exactly as
// given: where the template drops or rewrites it (R1's drop <think>), prompt + content + EOS is used instead. Errors:
// kInvalidArgument (no messages, last one not the assistant's, template raises, ...).
absl::StatusOr<TrainingExample> ExampleFromMessages(const Tokenizer& tokenizer, const nlohmann::ordered_json& row);

// {"input_ids": [...], "labels": [...]} taken as they are; labels absent: all trained. Errors: kInvalidArgument
// (lengths differ, ids outside the vocabulary).
absl::StatusOr<TrainingExample> ExampleFromTokens(const nlohmann::ordered_json& row, int64_t vocab_size);

}  // namespace retort
