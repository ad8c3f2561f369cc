// A row of a data set as TRL's SFTTrainer prepares it: the text it stands for, its token ids, and which are trained.
// model/sft_example.h is what jobs train on; it differs where R1's traces would lose their reasoning.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer.h"

namespace retort {

inline constexpr int32_t kIgnoreLabel = -100;

struct TrlOptions {
  // Whether labels are wanted. Without them {"text"} rows are tokenised as they stand, with them EOS is appended as TRL
  // does to what is trained.
  bool labels = false;
  // What is trained of {"messages"} and {"prompt", "completion"}, where the row has no "loss_on" of its own:
  // the last turn or the completion; or what {% generation %} blocks wrote (and, of a prompt and a completion, only the
  // latter's share of it); or, where neither is set, everything.
  bool completion_only = true;
  bool assistant_only = false;
};

struct TrlExample {
  std::string text;
  std::vector<int32_t> ids;
  std::vector<int32_t> labels;  // empty where none were wanted; kIgnoreLabel where not trained
  // The prompt's tokens are not the beginning of the whole's: a token spans the boundary, or the template renders the
  // prompt differently when it stands alone. As in TRL the completion begins where they part.
  bool prompt_diverges = false;
};

// {"text", "add_special_tokens"?}, {"messages", "add_generation_prompt"?} or {"prompt", "completion"} (two texts or two
// lists of messages); the latter two with "chat_template_kwargs"?, "chat_template"?, "tools"?, "loss_on"? (completion
// or assistant). EOS is appended to a completion that is a text. Errors: kInvalidArgument and RenderChat's.
absl::StatusOr<TrlExample> MakeTrlExample(const Tokenizer& tokenizer, const nlohmann::ordered_json& row,
                                          const TrlOptions& options);

}  // namespace retort
