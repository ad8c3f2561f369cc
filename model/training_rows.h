// Files of training rows as a job names them: which kind of rows a file holds, what is wrong with one, and the options
// that its job gives it. Looks at rows only; what becomes of them is model/sft_example.h.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/sft_example.h"
#include "retort/v1/job.pb.h"

namespace retort {

// Told by a row's columns. A file with a prompt template is of columns whatever its rows have: that is not asked here.
// Errors: kInvalidArgument (names the row's columns and what is wanted).
absl::StatusOr<v1::DatasetFormat> InferRowFormat(const nlohmann::json& row);

// Whether a row has what its format and the options ask for, as far as this is seen without a tokenizer. Errors:
// kInvalidArgument ("messages.0.role: wants a string", "assistant_only_loss: ...").
absl::Status CheckTrainingRow(const nlohmann::json& row, v1::DatasetFormat format, const SftOptions& options);

// What a job says of the rows of one of its files.
SftOptions SftOptionsOf(const v1::TrainingSpec& training, const v1::DatasetSource& source);

}  // namespace retort
