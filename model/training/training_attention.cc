#include "model/training/training_attention.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <string>

#include "model/blocks/attention.h"
#include "model/training/cudnn_attention.h"

namespace retort::internal {
namespace {

// Whether the fused engines' types and shapes are these.
bool IsFusible(const at::Tensor& q, const at::Tensor& v) {
  constexpr int64_t kWidest = 256;
  return q.is_cuda() && (q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf) && q.size(2) <= kWidest &&
         q.size(2) % 8 == 0 && q.size(2) == v.size(2);
}

bool IsTried(AttentionEngine engine, const AttentionOptions& options) {
  return options.engine == AttentionEngine::kBest || options.engine == engine;
}

// Stops a caller who asked for one engine and cannot have it.
void Demand(bool taken, AttentionEngine engine, const AttentionOptions& options, const std::string& why) {
  TORCH_CHECK(taken || options.engine != engine, "the attention engine asked for does not take this case: ", why);
}

// -1: as far as there are tokens.
int64_t LeftOf(int64_t window) { return window > 0 ? window - 1 : -1; }
int64_t RightOf(int64_t window) { return window > 0 ? 0 : -1; }

// Asks torch for an operation's deterministic form while it lives.
class Deterministic {
 public:
  explicit Deterministic(bool wanted)
      : context_(at::globalContext()),
        was_(context_.deterministicAlgorithms()),
        warn_only_(context_.deterministicAlgorithmsWarnOnly()),
        fill_(context_.deterministicFillUninitializedMemory()) {
    context_.setDeterministicAlgorithms(wanted, /*warn_only=*/false);
    context_.setDeterministicFillUninitializedMemory(false);
  }
  ~Deterministic() {
    context_.setDeterministicAlgorithms(was_, warn_only_);
    context_.setDeterministicFillUninitializedMemory(fill_);
  }
  Deterministic(const Deterministic&) = delete;
  Deterministic& operator=(const Deterministic&) = delete;

 private:
  at::Context& context_;
  const bool was_, warn_only_, fill_;
};

void FlashForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const PackedSamples& samples,
                  const AttentionOptions& options, at::Tensor& out, AttentionTape& tape) {
  const auto [made, log_sum, rng_state, unused, debug] = at::_flash_attention_forward(
      q, k, v, samples.cumulative, samples.cumulative, samples.longest, samples.longest, /*dropout_p=*/0.0,
      /*is_causal=*/true, /*return_debug_mask=*/false, options.scale, LeftOf(options.window), RightOf(options.window));
  out.copy_(made);
  tape.log_sum = log_sum.transpose(0, 1);
}

void FlashBackward(const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                   const at::Tensor& out, const AttentionTape& tape, const PackedSamples& samples,
                   const AttentionOptions& options, at::Tensor& dq, at::Tensor& dk, at::Tensor& dv) {
  const Deterministic deterministic(options.deterministic);
  // Read only where there is dropout.
  const at::Tensor rng_state = at::empty({2}, q.options().dtype(at::kUInt64));
  const at::Tensor unused = at::empty({}, q.options().dtype(at::kUInt64));
  const auto [of_q, of_k, of_v] = at::_flash_attention_backward(
      d_out, q, k, v, out, LogSumByToken(tape).transpose(0, 1).contiguous(), samples.cumulative, samples.cumulative,
      samples.longest, samples.longest, /*dropout_p=*/0.0, /*is_causal=*/true, rng_state, unused, options.scale,
      LeftOf(options.window), RightOf(options.window));
  dq.copy_(of_q);
  dk.copy_(of_k);
  dv.copy_(of_v);
}

}  // namespace

PackedSamples::PackedSamples(const std::vector<int64_t>& sequence_offsets, c10::Device device)
    : offsets(sequence_offsets), cumulative(at::tensor(sequence_offsets, at::kInt).to(device)) {
  for (size_t i = 0; i + 1 < offsets.size(); ++i) longest = std::max(longest, offsets[i + 1] - offsets[i]);
}

at::Tensor LogSumByToken(const AttentionTape& tape) {
  return tape.log_sum.dim() == 3 ? tape.log_sum.transpose(1, 2).flatten(0, 1) : tape.log_sum;
}

void AttendForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const PackedSamples& samples,
                   const AttentionOptions& options, at::Tensor& out, AttentionTape& tape) {
  const bool fusible = IsFusible(q, v);
  if (IsTried(AttentionEngine::kCudnn, options)) {
    std::string why = "type or shape";
    if (fusible && CudnnAttendForward(q, k, v, samples, options, out, tape, why)) return;
    Demand(false, AttentionEngine::kCudnn, options, why);
  }
  if (IsTried(AttentionEngine::kFlash, options)) {
    if (fusible) return FlashForward(q, k, v, samples, options, out, tape);
    Demand(false, AttentionEngine::kFlash, options, "type or shape");
  }
  Attention result = AttentionForward(q, k, v, {samples.offsets, options.scale, options.window});
  out.copy_(result.out);
  tape.log_sum = std::move(result.log_sum);
}

void AttendBackward(const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const at::Tensor& out, const AttentionTape& tape, const PackedSamples& samples,
                    const AttentionOptions& options, at::Tensor& dq, at::Tensor& dk, at::Tensor& dv) {
  const bool fusible = IsFusible(q, v);
  if (IsTried(AttentionEngine::kCudnn, options)) {
    std::string why = "type or shape";
    if (fusible && CudnnAttendBackward(d_out, q, k, v, out, tape, samples, options, dq, dk, dv, why)) return;
    Demand(false, AttentionEngine::kCudnn, options, why);
  }
  if (IsTried(AttentionEngine::kFlash, options)) {
    if (fusible) return FlashBackward(d_out, q, k, v, out, tape, samples, options, dq, dk, dv);
    Demand(false, AttentionEngine::kFlash, options, "type or shape");
  }
  const AttentionGradient gradient = AttentionBackward(d_out, q, k, v, {out, LogSumByToken(tape).contiguous()},
                                                       {samples.offsets, options.scale, options.window});
  dq.copy_(gradient.q);
  dk.copy_(gradient.k);
  dv.copy_(gradient.v);
}

}  // namespace retort::internal
