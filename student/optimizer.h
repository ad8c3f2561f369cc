// AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) and clipping by the global norm, as torch does both.
//
// All of it works element by element, or in one fixed order, on flat f32 buffers: the bits depend neither on the number
// of workers nor on that of threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace retort {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.0;
};

struct AdamWMoments {
  at::Tensor exp_avg;     // [numel], f32, on the parameters' device
  at::Tensor exp_avg_sq;  // [numel], f32
};

AdamWMoments ZeroMoments(const at::Tensor& parameters);

// Elements [begin, end) of the flat buffers.
struct FlatRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// Step number `step` (1 is the first) with `gradient`; changes parameters and moments in place. Weight decay spares
// `undecayed`.
void AdamWStep(const AdamWOptions& options, int64_t step, double learning_rate, const at::Tensor& gradient,
               at::Tensor& parameters, AdamWMoments& moments, const std::vector<FlatRange>& undecayed = {});

// The L2 norm, summed in double precision.
double GradientNorm(const at::Tensor& gradient);

// Scales the gradient by min(1, max_norm / (norm + 1e-6)). max_norm 0: leaves it alone.
void ClipGradient(double norm, double max_norm, at::Tensor& gradient);

}  // namespace retort
