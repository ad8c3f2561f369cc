// What training makes of a job's rows, seen on one of them before anything runs.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/spec/binder.h"
#include "cli/spec/document.h"
#include "cli/tokenize/show_mask.h"
#include "model/tokenizer.h"
#include "retort/v1/job.pb.h"

namespace retort::cli {

// The first row of the first file to train on.
struct TrainingSample {
  std::string path;
  int64_t line = 0;
  std::vector<int32_t> input_ids;
  std::vector<int32_t> labels;     // -100 where not trained
  std::vector<ShownToken> tokens;  // of ids that no tokenizer is there for: the ids
};

struct TrainingText {
  std::optional<TrainingSample> sample;  // none where the rows are still to be generated
  TokenAdditions additions;              // student.add_tokens and add_special_tokens
};

// Loads the student's tokenizer where rows or added tokens need it, and prepares the first row of every dataset file;
// where the rows are still to be generated, one of their kind. What cannot be goes to `diagnostics`. The dataset's
// formats have been filled in.
TrainingText LookAtTrainingText(const Origins& origins, const v1::JobSpec& spec, Diagnostics* diagnostics);

// "loss mask of ...", then the tokens. Empty without a sample.
std::string SampleText(const TrainingText& text, bool color);
// {"sample": {"path", "line", "input_ids", "labels"} or null, "added_tokens": [{"token", "id", "known"}]}.
nlohmann::json TrainingTextToJson(const TrainingText& text);

}  // namespace retort::cli
