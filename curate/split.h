// Which prompts train and which validate.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "retort/v1/job.pb.h"

namespace retort::curate {

enum class Split : uint8_t { kTrain, kValidation, kLeftOut };

// The split of each of `prompt_hashes` (distinct), in the same order. A pure function of hashes, shares and seed,
// whatever their order: prompts are ordered by SHA-256("retort split 1", seed, prompt hash) and cut. Of P prompts
// round(P * validation) validate, at least one when the share is above 0 and P above 1, and at most P - 1 unless train
// is 0; when the shares sum to 1 (to within 1e-9) the rest trains, otherwise round(P * train) of the rest, and what
// remains is left out. No shares at all: everything trains. Errors: kInvalidArgument (a negative share, or a sum above
// 1).
absl::StatusOr<std::vector<Split>> SplitPrompts(const std::vector<std::string>& prompt_hashes,
                                                const v1::SplitSpec& shares, uint64_t seed);

}  // namespace retort::curate
