// A transformer with a KV cache, without autograd: what generation and scoring run.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/parallel/tensor_group.h"
#include "model/weights.h"

namespace retort::internal {

// Tokens of one sequence that one pass computes. Positions before `start` are in the slot's cache; those of the tokens
// are written to it.
struct Segment {
  int64_t slot = 0;
  int64_t start = 0;
  absl::Span<const int32_t> tokens;
  enum class Wanted { kNone, kLast, kAll } wanted = Wanted::kLast;  // whose hidden states are returned
  // Of the whole sequence as it stands, which decides how it is rotated (RopeConfig::UsesLongFactors); 0: up to the
  // last of `tokens`. What is in the cache must have been computed under the same rule.
  int64_t sequence_tokens = 0;

  int64_t sequence_length() const {
    return sequence_tokens > 0 ? sequence_tokens : start + static_cast<int64_t>(tokens.size());
  }
};

// What a pass computes in where weights are bf16 on a GPU. The CPU's arithmetic is always f32.
enum class Activations {
  kFast,     // bf16, but for the residual stream, norms and logits
  kFloat32,  // f32 throughout: what is rounded are the weights alone, as on the CPU
};

// Sequences live in slots 0 .. slots - 1. One thread calls it at a time.
class Decoder {
 public:
  // Weights on the CPU give the hand-written decoder where it knows the architecture, others the one over ATen. On the
  // CPU the arithmetic is always f32, also where `compute_dtype` is bf16: the weights are then rounded to bf16.
  // `group`: the ranks that share the model, of which `weights` are one's part; every rank then makes the same calls,
  // and everyone gets the whole logits. Null: nobody. Not owned.
  static absl::StatusOr<std::unique_ptr<Decoder>> Create(ModelWeights weights, c10::ScalarType compute_dtype,
                                                         int64_t slots, TensorGroup* group = nullptr,
                                                         Activations activations = Activations::kFast);
  virtual ~Decoder() = default;

  virtual const ModelConfig& config() const = 0;
  // The most tokens that the segments of one pass may hold together.
  virtual int64_t max_tokens_per_pass() const = 0;
  // Makes room for `positions` in a slot whose sequence has not begun. Errors: kResourceExhausted (memory).
  virtual absl::Status Reserve(int64_t slot, int64_t positions) = 0;
  // Hidden states after the last norm, [wanted rows, hidden], in the order of the segments. At most one segment a slot;
  // token ids inside the vocabulary. Errors: kResourceExhausted (memory), those of Communicator::Exchange.
  virtual absl::StatusOr<at::Tensor> Forward(absl::Span<const Segment> segments) = 0;
  // [rows, vocabulary] f32 on the decoder's device; rows may be strided. Errors: kResourceExhausted.
  virtual absl::StatusOr<at::Tensor> Logits(const at::Tensor& hidden) = 0;
};

// Whether the hand-written decoder computes what this config describes.
bool CpuDecoderSupports(const ModelConfig& config);
// Each of Create's two.
absl::StatusOr<std::unique_ptr<Decoder>> CreateCpuDecoder(ModelWeights weights, c10::ScalarType compute_dtype,
                                                          int64_t slots);
absl::StatusOr<std::unique_ptr<Decoder>> CreateAtenDecoder(ModelWeights weights, c10::ScalarType compute_dtype,
                                                           int64_t slots, TensorGroup* group = nullptr,
                                                           Activations activations = Activations::kFast);

}  // namespace retort::internal
