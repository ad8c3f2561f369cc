// How often each model of an evaluation is right.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "curate/answer.h"
#include "retort/v1/job.pb.h"
#include "retort/v1/sample_service.pb.h"

namespace retort::curate {

// One model's answers to one evaluation's prompts. Accuracy is the mean over prompts of the mean over samples (pass@1);
// a sample that is missing, ended in an error, or was cut off before it gave an answer (Verifier::Extract) counts as
// wrong. Not thread-safe.
class ModelScore {
 public:
  // `model` is "base", "teacher" or "student" and begins the names of the outcomes: <model>_correct, _wrong,
  // _no_answer, _no_reference, _error, _missing. `verifier` must outlive it.
  ModelScore(absl::string_view model, const Verifier& verifier) : model_(model), verifier_(verifier) {}

  // Takes a trace; returns whether it is right.
  bool Add(const v1::Prompt& prompt, const v1::Trace& trace);
  // What was not added out of `sample_count` counts as missing. Returns the accuracy; 0 when there are no samples.
  double Finish(int64_t sample_count);

  // Adds this model's counts.
  void AddOutcomes(std::map<std::string, int64_t>* outcomes) const;

 private:
  void Count(absl::string_view verdict, int64_t by) { counts_[model_ + "_" + std::string(verdict)] += by; }

  const std::string model_;
  const Verifier& verifier_;
  int64_t added_ = 0;
  int64_t correct_ = 0;
  std::map<std::string, int64_t> counts_;
};

// The last user turn of a prompt's messages; the messages as they are when there is none.
std::string UserTurn(const v1::Prompt& prompt);

}  // namespace retort::curate
