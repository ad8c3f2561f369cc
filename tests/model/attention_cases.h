// Attention over packed samples as a training step calls it, measured against f64 autograd: what the tests of the CPU
// and of the GPU share.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "model/training/training_attention.h"

namespace retort::testing {

struct AttentionCase {
  std::vector<int64_t> lengths;
  int64_t heads = 0, kv_heads = 0, dim = 0;
  int64_t window = 0;
  std::string Text() const;
};

// Small: lengths up to 130, for a CPU.
std::vector<AttentionCase> SmallAttentionCases();
// Lengths up to 2048; samples of one length, and of many.
std::vector<AttentionCase> LargeAttentionCases();

// Matrices wider than what they hold, so that every view has strides.
struct AttentionInputs {
  AttentionInputs(const AttentionCase& attention_case, c10::ScalarType dtype, uint64_t seed);
  AttentionInputs To(c10::Device device) const;

  AttentionCase attention_case;
  at::Tensor qkv;    // [tokens, (heads + 2 kv_heads) dim + 16]
  at::Tensor d_out;  // [tokens, heads dim + 8]
};

struct AttentionResult {
  at::Tensor out;      // [tokens, heads dim + 8]; the last columns are not the attention's
  at::Tensor d_qkv;    // like qkv
  at::Tensor log_sum;  // [tokens, heads]
};

// Everything in f64 on the CPU from the very values of the inputs, by autograd.
AttentionResult ReferenceAttention(const AttentionInputs& inputs);

// Forward and backward into matrices full of NaN. `backward`: the engine of that pass.
AttentionResult RunAttention(const AttentionInputs& inputs, const internal::AttentionOptions& options,
                             internal::AttentionEngine backward);

// Fails the test where the parts of `result` are farther than `tolerance`, in norms, from the reference's, or where
// columns were written that are not the attention's.
void ExpectClose(const AttentionCase& attention_case, const AttentionResult& result, const AttentionResult& reference,
                 double tolerance);

double AttentionScale(const AttentionCase& attention_case);

}  // namespace retort::testing
