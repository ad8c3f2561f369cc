// What every implementation of FusedOps must do, on any device: values against f64 autograd of the same function
// written plainly, at odd sizes, strides and alignments; what lies beside the output is left alone; two runs give the
// same bits.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "model/training/fused_ops.h"

namespace retort::testing {

struct FusedSubject {
  const FusedOps& ops;
  c10::Device device;
};

// A fresh seed each run, or RETORT_TEST_SEED; it is printed, and at::manual_seed has it.
void SeedFreshly();

// Fails where `actual` is not as near to `expected` (f64, CPU) as its type allows: by the norm of the difference, and
// element by element within a rounding and a little of the largest value. `terms`, where they are defined: what was
// added up to give it, if that is larger (sums that cancel are no nearer than a rounding of their terms).
void ExpectNear(const at::Tensor& actual, const at::Tensor& expected, const std::string& what,
                const at::Tensor& terms = {});
void ExpectSameBits(const at::Tensor& a, const at::Tensor& b, const std::string& what);

// In f64, on the CPU, from tensors of any type and device; differentiable.
at::Tensor PlainRmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);
at::Tensor PlainRotate(const at::Tensor& x, int64_t heads, const at::Tensor& cos, const at::Tensor& sin, bool inverse);
at::Tensor PlainSwiGlu(const at::Tensor& gate_up);
at::Tensor PlainCrossEntropy(const at::Tensor& logits, const at::Tensor& targets);
// The gradient of f(x) at `grad`, where f is one of them.
template <typename Function>
at::Tensor PlainGradient(const Function& f, const at::Tensor& x, const at::Tensor& grad) {
  at::Tensor input = x.detach().cpu().to(at::kDouble).clone().requires_grad_();
  f(input).backward(grad.detach().cpu().to(at::kDouble));
  return input.grad();
}

void CheckRmsNorm(const FusedSubject& subject);
void CheckRmsNormBackward(const FusedSubject& subject);
void CheckRotate(const FusedSubject& subject);
void CheckSwiGlu(const FusedSubject& subject);
void CheckSwiGluBackward(const FusedSubject& subject);
void CheckCrossEntropy(const FusedSubject& subject);
// Rows of which no loss is to be had.
void CheckCrossEntropyOfNoNumbers(const FusedSubject& subject);
void CheckSquareSum(const FusedSubject& subject);
// Bit by bit what the CPU's scalar loop gives.
void CheckAdamW(const FusedSubject& subject);
void CheckFlatBlocks(const FusedSubject& subject);
void CheckWrongArguments(const FusedSubject& subject);

}  // namespace retort::testing
