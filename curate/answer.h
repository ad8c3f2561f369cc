// Finds the answer in what a model wrote and says whether it is right.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "retort/v1/job.pb.h"

namespace re2 {
class RE2;
}

namespace retort::curate {

enum class Verdict {
  kCorrect,
  kWrong,
  kNoAnswer,     // none could be found in the text
  kNoReference,  // the row has no answer to compare with, or one that is not what the kind asks for (a number, a
                 // regular expression)
};

// What follows the last "</think>"; the whole text when there is neither tag; nothing when "<think>" was opened and
// never closed (a truncated trace has not answered).
std::optional<absl::string_view> AfterThinking(absl::string_view text);

// The contents of the last \boxed{...} (or \fbox{...}) whose braces balance; \{ and \} do not count. None when there is
// none.
std::optional<std::string> LastBoxed(absl::string_view text);

// One VerifySpec, compiled. Thread-safe.
class Verifier {
 public:
  // Errors: kInvalidArgument (answer_pattern is not RE2 syntax). A kind that is unspecified accepts everything.
  static absl::StatusOr<Verifier> Make(const v1::VerifySpec& spec);
  Verifier(Verifier&&) noexcept;
  Verifier& operator=(Verifier&&) noexcept;
  ~Verifier();

  // The answer in `text` as VerifySpec says. None when there is none. `truncated`: the model was cut off at its limit
  // of tokens (finish_reason "length"). Where it marks its reasoning, reasoning that never ended holds no answer; where
  // it has neither tag (the template may have opened the reasoning), or was cut off in its answer, only what is marked
  // as the answer counts, a \boxed{} or a match of answer_pattern: the last number of an unfinished text is a number
  // on the way.
  std::optional<std::string> Extract(absl::string_view text, bool truncated = false) const;

  // Number: the same text, or equal as numbers (number.h). Exact: the same text but for white space around it. Regex:
  // the reference is a regular expression (RE2; "." matches newlines) that matches the whole answer.
  Verdict Verify(absl::string_view text, absl::string_view reference, bool truncated = false) const;

 private:
  Verifier(v1::VerifySpec spec, std::unique_ptr<re2::RE2> pattern);
  v1::VerifySpec spec_;
  std::unique_ptr<re2::RE2> pattern_;  // null: \boxed{}
};

}  // namespace retort::curate
