#include "tests/model/attention_cases.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace retort::testing {
namespace {

constexpr int64_t kMoreOfQkv = 16;
constexpr int64_t kMoreOfOut = 8;

// Columns [from, from + heads) x dim of a matrix.
at::Tensor Heads(const at::Tensor& matrix, int64_t from, int64_t heads, int64_t dim) {
  return matrix.narrow(1, from * dim, heads * dim).unflatten(1, {heads, dim});
}

struct Parts {
  Parts(const at::Tensor& qkv, const AttentionCase& of)
      : q(Heads(qkv, 0, of.heads, of.dim)),
        k(Heads(qkv, of.heads, of.kv_heads, of.dim)),
        v(Heads(qkv, of.heads + of.kv_heads, of.kv_heads, of.dim)) {}
  at::Tensor q, k, v;
};

std::vector<int64_t> OffsetsOf(const AttentionCase& of) {
  std::vector<int64_t> offsets = {0};
  for (const int64_t length : of.lengths) offsets.push_back(offsets.back() + length);
  return offsets;
}

at::Tensor Poison(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::full(sizes, std::nan(""), options);
}

// [heads, length, length], true where a row may not look.
at::Tensor Hidden(int64_t length, int64_t window) {
  const at::Tensor all = at::ones({length, length}, at::kBool);
  at::Tensor hidden = all.triu(1);
  if (window > 0) hidden = hidden.logical_or(all.tril(-window));
  return hidden;
}

}  // namespace

std::string AttentionCase::Text() const {
  return absl::StrCat("lengths ", absl::StrJoin(lengths, " "), ", heads ", heads, "/", kv_heads, ", dim ", dim,
                      ", window ", window);
}

std::vector<AttentionCase> SmallAttentionCases() {
  return {{{1}, 2, 1, 8},
          {{5}, 3, 3, 16},
          {{1, 1, 1}, 4, 2, 8},
          {{1, 5, 64, 2}, 4, 2, 24, 0},
          {{7, 130, 1}, 6, 2, 16, 0},
          {{33, 33}, 2, 2, 40, 1},
          {{64, 17, 1, 90}, 4, 1, 32, 16},
          {{100, 3}, 8, 8, 8, 300}};
}

std::vector<AttentionCase> LargeAttentionCases() {
  const std::vector<int64_t> mixed = {1, 5, 64, 129, 700, 2048};
  return {{{1}, 8, 2, 128},
          {{512}, 4, 4, 128},
          {{1024, 1024}, 8, 2, 128},
          {{512, 512, 512}, 8, 2, 64, 100},
          {{777}, 4, 1, 128, 128},
          {{200, 200, 200, 200}, 4, 2, 96},
          {mixed, 8, 2, 128},
          {mixed, 4, 4, 64},
          {mixed, 4, 2, 96},
          {mixed, 4, 1, 128, 256},
          {{2048, 1, 1, 300, 31}, 4, 4, 64, 1},
          {{129, 128, 127}, 16, 4, 128, 64}};
}

AttentionInputs::AttentionInputs(const AttentionCase& of, c10::ScalarType dtype, uint64_t seed) : attention_case(of) {
  at::manual_seed(seed);
  const int64_t tokens = std::accumulate(of.lengths.begin(), of.lengths.end(), int64_t{0});
  qkv = at::randn({tokens, (of.heads + 2 * of.kv_heads) * of.dim + kMoreOfQkv}).to(dtype);
  d_out = at::randn({tokens, of.heads * of.dim + kMoreOfOut}).to(dtype);
}

AttentionInputs AttentionInputs::To(c10::Device device) const {
  AttentionInputs moved = *this;
  moved.qkv = qkv.to(device);
  moved.d_out = d_out.to(device);
  return moved;
}

double AttentionScale(const AttentionCase& of) { return 0.9 / std::sqrt(static_cast<double>(of.dim)); }

AttentionResult ReferenceAttention(const AttentionInputs& inputs) {
  const AttentionCase& of = inputs.attention_case;
  const at::Tensor qkv = inputs.qkv.cpu().to(at::kDouble).requires_grad_(true);
  const Parts parts(qkv, of);
  const at::Tensor d_out = Heads(inputs.d_out.cpu().to(at::kDouble), 0, of.heads, of.dim);
  const int64_t group = of.heads / of.kv_heads;
  std::vector<at::Tensor> outs, log_sums;
  int64_t begin = 0;
  for (const int64_t length : of.lengths) {
    const auto rows = [&](const at::Tensor& x) { return x.narrow(0, begin, length).transpose(0, 1); };
    const at::Tensor k = rows(parts.k).repeat_interleave(group, 0);
    const at::Tensor v = rows(parts.v).repeat_interleave(group, 0);
    const at::Tensor scores = at::matmul(rows(parts.q), k.transpose(1, 2))
                                  .mul(AttentionScale(of))
                                  .masked_fill(Hidden(length, of.window), -std::numeric_limits<double>::infinity());
    outs.push_back(at::matmul(at::softmax(scores, 2), v).transpose(0, 1));
    log_sums.push_back(at::logsumexp(scores.detach(), 2).transpose(0, 1));
    begin += length;
  }
  const at::Tensor out = at::cat(outs);
  (out * d_out).sum().backward();
  AttentionResult result;
  result.out = at::cat({out.detach().flatten(1), at::zeros({out.size(0), kMoreOfOut}, at::kDouble)}, 1);
  result.d_qkv = qkv.grad();
  result.log_sum = at::cat(log_sums);
  return result;
}

AttentionResult RunAttention(const AttentionInputs& inputs, const internal::AttentionOptions& options,
                             internal::AttentionEngine backward) {
  const AttentionCase& of = inputs.attention_case;
  const internal::PackedSamples samples(OffsetsOf(of), inputs.qkv.device());
  AttentionResult result;
  result.out = Poison(inputs.d_out.sizes(), inputs.d_out.options());
  result.d_qkv = Poison(inputs.qkv.sizes(), inputs.qkv.options());
  const Parts parts(inputs.qkv, of);
  Parts gradients(result.d_qkv, of);
  at::Tensor out = Heads(result.out, 0, of.heads, of.dim);
  internal::AttentionTape tape;
  internal::AttendForward(parts.q, parts.k, parts.v, samples, options, out, tape);
  internal::AttentionOptions of_backward = options;
  of_backward.engine = backward;
  internal::AttendBackward(Heads(inputs.d_out, 0, of.heads, of.dim), parts.q, parts.k, parts.v, out, tape, samples,
                           of_backward, gradients.q, gradients.k, gradients.v);
  result.log_sum = internal::LogSumByToken(tape);
  return result;
}

void ExpectClose(const AttentionCase& of, const AttentionResult& result, const AttentionResult& reference,
                 double tolerance) {
  const auto expect = [&](const char* part, const at::Tensor& is, const at::Tensor& should_be) {
    const at::Tensor wide = is.cpu().to(at::kDouble);
    const double norm = should_be.norm().item<double>();
    const double off = (wide - should_be).norm().item<double>();
    // A row that sees only itself gives q and k no gradient.
    EXPECT_LE(off, tolerance * norm + 1e-3 * tolerance * std::sqrt(static_cast<double>(should_be.numel()))) << part;
    EXPECT_TRUE(wide.isfinite().all().item<bool>()) << part << ": not all of it was written";
  };
  expect("out", Heads(result.out, 0, of.heads, of.dim), Heads(reference.out, 0, of.heads, of.dim));
  const Parts is(result.d_qkv, of);
  const Parts should_be(reference.d_qkv, of);
  expect("dq", is.q, should_be.q);
  expect("dk", is.k, should_be.k);
  expect("dv", is.v, should_be.v);
  expect("log_sum", result.log_sum, reference.log_sum);
  const auto rest = [](const at::Tensor& matrix, int64_t columns) {
    return matrix.narrow(1, matrix.size(1) - columns, columns).isnan().all().item<bool>();
  };
  EXPECT_TRUE(rest(result.out, kMoreOfOut)) << "columns beside out were written";
  EXPECT_TRUE(rest(result.d_qkv, kMoreOfQkv)) << "columns beside dv were written";
}

}  // namespace retort::testing
