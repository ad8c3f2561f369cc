// Log-probabilities of given tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/weights.h"

namespace retort {

namespace internal {
class Decoder;
}

// One thread calls it at a time. Memory does not grow with the length of the input beyond its KV cache.
class Scorer {
 public:
  // As GenerationEngine::Create.
  static absl::StatusOr<std::unique_ptr<Scorer>> Create(ModelWeights weights, c10::ScalarType compute_dtype);
  ~Scorer();

  // For each sequence the natural log of each token's probability given those before it. The first token has none: its
  // place holds NaN. Short sequences share passes. Errors: kInvalidArgument (ids outside the vocabulary, longer than
  // the model's context; says which sequence), kResourceExhausted (memory).
  absl::StatusOr<std::vector<std::vector<float>>> Score(absl::Span<const std::vector<int32_t>> sequences);

  // Why a sequence cannot be scored, or OK.
  absl::Status Check(absl::Span<const int32_t> tokens) const;

 private:
  explicit Scorer(std::unique_ptr<internal::Decoder> decoder);
  const std::unique_ptr<internal::Decoder> decoder_;
};

}  // namespace retort
