// Log-probabilities of given tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/parallel/tensor_group.h"
#include "model/weights.h"

namespace retort {

namespace internal {
class Decoder;
}

// One thread calls it at a time. Memory does not grow with the length of the input beyond its KV cache.
class Scorer {
 public:
  // As GenerationEngine::Create, but activations are f32 also where weights are bf16, on a GPU as on the CPU.
  // `beyond_context`: sequences longer than the model's context are scored too (their positions are extrapolated).
  static absl::StatusOr<std::unique_ptr<Scorer>> Create(ModelWeights weights, c10::ScalarType compute_dtype,
                                                        bool beyond_context = false, TensorGroup* group = nullptr);
  ~Scorer();

  // For each sequence the natural log of each token's probability given those before it. The first token has none: its
  // place holds NaN. Short sequences share passes. Errors: kInvalidArgument (ids outside the vocabulary, longer than
  // the model's context; says which sequence), kResourceExhausted (memory).
  absl::StatusOr<std::vector<std::vector<float>>> Score(absl::Span<const std::vector<int32_t>> sequences);

  // Why a sequence cannot be scored, or OK.
  absl::Status Check(absl::Span<const int32_t> tokens) const;

 private:
  Scorer(std::unique_ptr<internal::Decoder> decoder, bool beyond_context);
  const std::unique_ptr<internal::Decoder> decoder_;
  const bool beyond_context_;
};

}  // namespace retort
