// Rows of data sets as the training examples of jobs: token ids and which of them are trained.
//
// Where TRL's SFTTrainer would train on less than the user wrote, jobs differ on purpose: the assistant's last turn
// stands in the ids as given, also where the chat template drops its <think>, and what ends it (EOS) is always there
// and trained. model/trl_example.h is TRL to the letter.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer.h"
#include "model/trl_example.h"

namespace retort {

struct TrainingExample {
  std::vector<int32_t> input_ids;
  std::vector<int32_t> labels;  // as long as input_ids, not shifted; kIgnoreLabel where not trained
  // Where samples begin that may not see what stands before them, ascending, the first 0; empty: the row is one sample.
  // Labels are as given: one at a sample's beginning is predicted from the end of the sample before.
  std::vector<int32_t> sample_starts = {};
};

// The keys of a job's training section that decide what is trained.
struct SftOptions {
  // Unset: of {"messages"} the assistant's last turn, of {"prompt", "completion"} the completion, of {"text"} and
  // filled templates everything. false: everything of every row. true: of a filled template what its last slot holds
  // and what follows.
  std::optional<bool> completion_only_loss;
  // What the chat template's {% generation %} blocks wrote; excludes completion_only_loss = false of conversations.
  bool assistant_only_loss = false;
  // false: EOS is shown and not trained.
  bool train_on_eos = true;
  // A text with slots to be filled from the row's columns; EOS is appended. {} takes the columns of
  // prompt_template_fields in turn, {name} the column of that name, {{ and }} are braces. Empty: rows are read by their
  // own columns.
  std::string prompt_template;
  std::vector<std::string> prompt_template_fields;
};

// {"input_ids", "labels"?, "position_ids"?}, {"messages"}, {"prompt", "completion"}, {"text"}, or any columns for a
// template. Ids that a row gives are below `vocab_size`; negative: the tokenizer's. Errors: kInvalidArgument.
absl::StatusOr<TrainingExample> ExampleFromRow(const Tokenizer& tokenizer, const nlohmann::ordered_json& row,
                                               const SftOptions& options, int64_t vocab_size = -1);

// The columns that a prompt template takes, in the order of its slots. Errors: kInvalidArgument (a brace without its
// other, no slot, other than as many {} as prompt_template_fields has columns).
absl::StatusOr<std::vector<std::string>> PromptTemplateColumns(const SftOptions& options);

// Rows are ordered: templates may print a message's keys. {"messages": [...]}, the last of role assistant: only that
// turn is trained, with what ends it (EOS, as the template writes it), and its content stands in the ids exactly as
// given: where the template drops or rewrites it (R1's drop <think>), prompt + content + EOS is used instead. Errors:
// kInvalidArgument (no messages, last one not the assistant's, template raises, ...).
absl::StatusOr<TrainingExample> ExampleFromMessages(const Tokenizer& tokenizer, const nlohmann::ordered_json& row);

// {"input_ids": [...], "labels": [...]} taken as they are; labels absent: all trained. "position_ids", where given,
// count up from 0 and begin a new sample with each 0. Errors: kInvalidArgument (lengths differ, ids outside the
// vocabulary).
absl::StatusOr<TrainingExample> ExampleFromTokens(const nlohmann::ordered_json& row, int64_t vocab_size);

}  // namespace retort
