// Draws a token from a row of logits.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace retort::internal {

struct SamplerScratch {
  std::vector<double> mass;
  std::vector<int32_t> candidates;
};

// A pure function of logits, temperature, top_p, key and position. Temperature 0 takes the largest logit (the lowest id
// among equals). Otherwise: softmax(logits / temperature); the smallest set of most likely tokens (ties by id) whose
// mass is at least top_p, never empty; one uniform from Philox (key, position). Errors: kInternal (a logit that is not
// a number or infinite: broken weights).
absl::StatusOr<int32_t> SampleToken(absl::Span<const float> logits, double temperature, double top_p, uint64_t key,
                                    int64_t position, SamplerScratch& scratch);

}  // namespace retort::internal
