// Batched generation with a KV cache.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/parallel/tensor_group.h"
#include "model/weights.h"

namespace retort {

struct SamplingParams {
  double temperature = 0.0;  // 0: greedy
  double top_p = 1.0;
  int64_t max_tokens = 0;  // new tokens at most, `generated` included
  bool ignore_eos = false;
};

struct GenerationRequest {
  uint64_t id = 0;                 // the caller's
  std::vector<int32_t> prompt;     // at least one token
  std::vector<int32_t> generated;  // tokens that an earlier run wrote; goes on after them
  SamplingParams sampling;
  uint64_t random_key = 0;  // token t is drawn from the counter-based stream (random_key, t), whoever draws it
};

struct GenerationResult {
  uint64_t id = 0;
  std::vector<int32_t> token_ids;  // new tokens, the EOS included when it stopped there
  std::string finish_reason;       // "stop" | "length"
};

struct EngineOptions {
  int64_t max_batch_size = 32;      // sequences decoded together
  int64_t max_sequence_length = 0;  // prompt + new tokens of one sequence; 0: the model's context_length()
  bool beyond_context = false;      // max_sequence_length may exceed it: positions are then extrapolated
};

// Continuous batching: sequences join and leave between steps. What a sequence's tokens are does not depend on what
// else is in the batch's queue order beyond floating-point rounding. One thread calls it at a time.
class GenerationEngine {
 public:
  // `group`: the ranks that share the model, as Decoder::Create; all make the same calls and get the same results. The
  // computation runs in `compute_dtype` (f32 or bf16); weights may be stored in f32 or bf16. Copies weights into
  // its own layout where that is faster.
  static absl::StatusOr<std::unique_ptr<GenerationEngine>> Create(ModelWeights weights, c10::ScalarType compute_dtype,
                                                                  const EngineOptions& options,
                                                                  TensorGroup* group = nullptr);
  virtual ~GenerationEngine() = default;

  // Errors: kInvalidArgument (empty prompt, ids outside the vocabulary, prompt longer than the model's context).
  virtual absl::Status Add(GenerationRequest request) = 0;
  // Prefills what is new, draws one token for every running sequence, and returns those that ended. Errors:
  // kResourceExhausted (memory).
  virtual absl::StatusOr<std::vector<GenerationResult>> Step() = 0;
  // Ends a sequence without a result. Errors: kNotFound.
  virtual absl::Status Remove(uint64_t id) = 0;
  // Sequences added and not yet returned.
  virtual int64_t active() const = 0;
  // What the running sequences have written so far (ids of the requests), for partial checkpoints.
  virtual std::vector<GenerationResult> Snapshot() const = 0;
};

}  // namespace retort
