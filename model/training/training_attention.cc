#include "model/training/training_attention.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>

#include <algorithm>

#include "model/blocks/attention.h"

namespace retort::internal {
namespace {

enum class Engine { kAten, kFlash, kCudnn };

Engine EngineFor(const at::Tensor& q, const PackedSamples& samples, const AttentionOptions& options) {
  constexpr int64_t kWidestFlash = 256;
  constexpr int64_t kWidestCudnn = 128;
  if (!q.is_cuda() || q.scalar_type() == at::kFloat || q.size(2) > kWidestFlash || q.size(2) % 8 != 0) {
    return Engine::kAten;
  }
  const bool cudnn =
      !options.deterministic && options.window == 0 && samples.of_one_length() && q.size(2) <= kWidestCudnn;
  return cudnn ? Engine::kCudnn : Engine::kFlash;
}

// -1: as far as there are tokens.
int64_t LeftOf(int64_t window) { return window > 0 ? window - 1 : -1; }
int64_t RightOf(int64_t window) { return window > 0 ? 0 : -1; }

// [tokens, heads, dim] -> [samples, heads, length, dim], a view.
at::Tensor BySample(const at::Tensor& x, const PackedSamples& samples) {
  return x.unflatten(0, {samples.count(), samples.longest}).transpose(1, 2);
}
at::Tensor ByToken(const at::Tensor& x) { return x.transpose(1, 2).flatten(0, 1); }

// Asks torch for an operation's deterministic form while it lives.
class Deterministic {
 public:
  explicit Deterministic(bool wanted)
      : context_(at::globalContext()),
        was_(context_.deterministicAlgorithms()),
        fill_(context_.deterministicFillUninitializedMemory()) {
    context_.setDeterministicAlgorithms(wanted, /*warn_only=*/false);
    context_.setDeterministicFillUninitializedMemory(false);
  }
  ~Deterministic() {
    context_.setDeterministicAlgorithms(was_, /*warn_only=*/false);
    context_.setDeterministicFillUninitializedMemory(fill_);
  }
  Deterministic(const Deterministic&) = delete;
  Deterministic& operator=(const Deterministic&) = delete;

 private:
  at::Context& context_;
  const bool was_, fill_;
};

}  // namespace

PackedSamples::PackedSamples(const std::vector<int64_t>& sequence_offsets, c10::Device device)
    : offsets(sequence_offsets), cumulative(at::tensor(sequence_offsets, at::kInt).to(device)) {
  for (size_t i = 0; i + 1 < offsets.size(); ++i) longest = std::max(longest, offsets[i + 1] - offsets[i]);
}

at::Tensor AttendForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const PackedSamples& samples,
                         const AttentionOptions& options, AttentionTape& tape) {
  switch (EngineFor(q, samples, options)) {
    case Engine::kAten: {
      Attention result = AttentionForward(q, k, v, {samples.offsets, options.scale, options.window});
      tape.log_sum = std::move(result.log_sum);
      return std::move(result.out);
    }
    case Engine::kFlash: {
      auto [out, log_sum, rng_state, unused, debug] = at::_flash_attention_forward(
          q, k, v, samples.cumulative, samples.cumulative, samples.longest, samples.longest, /*dropout_p=*/0.0,
          /*is_causal=*/true, /*return_debug_mask=*/false, options.scale, LeftOf(options.window),
          RightOf(options.window));
      tape = {std::move(log_sum), std::move(rng_state), std::move(unused)};
      return std::move(out);
    }
    case Engine::kCudnn:
      break;
  }
  auto [out, log_sum, cumulative_q, cumulative_k, longest_q, longest_k, seed, offset, debug] =
      at::_scaled_dot_product_cudnn_attention(BySample(q, samples), BySample(k, samples), BySample(v, samples),
                                              std::nullopt, /*compute_log_sumexp=*/true, /*dropout_p=*/0.0,
                                              /*is_causal=*/true, /*return_debug_mask=*/false, options.scale);
  tape = {std::move(log_sum), std::move(seed), std::move(offset)};
  return ByToken(out);
}

void AttendBackward(const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const at::Tensor& out, const AttentionTape& tape, const PackedSamples& samples,
                    const AttentionOptions& options, at::Tensor& dq, at::Tensor& dk, at::Tensor& dv) {
  const auto put = [&](const at::Tensor& of_q, const at::Tensor& of_k, const at::Tensor& of_v) {
    dq.copy_(of_q);
    dk.copy_(of_k);
    dv.copy_(of_v);
  };
  switch (EngineFor(q, samples, options)) {
    case Engine::kAten: {
      const AttentionGradient gradient =
          AttentionBackward(d_out, q, k, v, {out, tape.log_sum}, {samples.offsets, options.scale, options.window});
      return put(gradient.q, gradient.k, gradient.v);
    }
    case Engine::kFlash: {
      const Deterministic deterministic(options.deterministic);
      const auto [of_q, of_k, of_v] = at::_flash_attention_backward(
          d_out, q, k, v, out, tape.log_sum, samples.cumulative, samples.cumulative, samples.longest, samples.longest,
          /*dropout_p=*/0.0, /*is_causal=*/true, tape.rng_state, tape.offset, options.scale, LeftOf(options.window),
          RightOf(options.window));
      return put(of_q, of_k, of_v);
    }
    case Engine::kCudnn:
      break;
  }
  const auto [of_q, of_k, of_v] = at::_scaled_dot_product_cudnn_attention_backward(
      BySample(d_out, samples), BySample(q, samples), BySample(k, samples), BySample(v, samples),
      BySample(out, samples), tape.log_sum, tape.rng_state, tape.offset, /*attn_bias=*/at::Tensor(),
      /*cum_seq_q=*/at::Tensor(), /*cum_seq_k=*/at::Tensor(), samples.longest, samples.longest, /*dropout_p=*/0.0,
      /*is_causal=*/true, options.scale);
  put(ByToken(of_q), ByToken(of_k), ByToken(of_v));
}

}  // namespace retort::internal
