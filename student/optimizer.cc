#include "student/optimizer.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>

#include "common/check.h"

namespace retort {
namespace {

struct StepScalars {
  float decay;  // 1 - learning_rate * weight_decay
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float bias_correction2_sqrt;
  float epsilon;
  float negative_step_size;
};

// The order of operations is that of torch.optim.AdamW's single-tensor path.
void StepOnCpu(const StepScalars& s, int64_t numel, const float* gradient, float* parameter, float* exp_avg,
               float* exp_avg_sq) {
  for (int64_t i = 0; i < numel; ++i) {
    const float g = gradient[i];
    const float p = parameter[i] * s.decay;
    const float m = exp_avg[i] + s.one_minus_beta1 * (g - exp_avg[i]);
    const float v = exp_avg_sq[i] * s.beta2 + s.one_minus_beta2 * g * g;
    const float denominator = std::sqrt(v) / s.bias_correction2_sqrt + s.epsilon;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    parameter[i] = p + s.negative_step_size * m / denominator;
  }
}

// body(begin, end, whether it decays) over all elements in order.
template <typename Body>
void ForEachRange(int64_t numel, const std::vector<FlatRange>& undecayed, const Body& body) {
  int64_t next = 0;
  for (const FlatRange& range : undecayed) {
    if (next < range.begin) body(next, range.begin, true);
    body(range.begin, range.end, false);
    next = range.end;
  }
  if (next < numel) body(next, numel, true);
}

}  // namespace

AdamWMoments ZeroMoments(const at::Tensor& parameters) {
  return {at::zeros_like(parameters), at::zeros_like(parameters)};
}

void AdamWStep(const AdamWOptions& options, int64_t step, double learning_rate, const at::Tensor& gradient,
               at::Tensor& parameters, AdamWMoments& moments, const std::vector<FlatRange>& undecayed) {
  RETORT_CHECK(step >= 1 && gradient.numel() == parameters.numel() && moments.exp_avg.numel() == parameters.numel() &&
               moments.exp_avg_sq.numel() == parameters.numel());
  const double bias_correction1 = 1 - std::pow(options.beta1, static_cast<double>(step));
  const double bias_correction2_sqrt = std::sqrt(1 - std::pow(options.beta2, static_cast<double>(step)));
  const double step_size = learning_rate / bias_correction1;
  if (parameters.is_cpu()) {
    RETORT_CHECK(gradient.is_contiguous() && parameters.is_contiguous());
    const StepScalars scalars{static_cast<float>(1 - learning_rate * options.weight_decay),
                              static_cast<float>(1 - options.beta1),
                              static_cast<float>(options.beta2),
                              static_cast<float>(1 - options.beta2),
                              static_cast<float>(bias_correction2_sqrt),
                              static_cast<float>(options.epsilon),
                              static_cast<float>(-step_size)};
    ForEachRange(parameters.numel(), undecayed, [&](int64_t begin, int64_t end, bool decay) {
      StepScalars own = scalars;
      if (!decay) own.decay = 1.0F;
      StepOnCpu(own, end - begin, gradient.const_data_ptr<float>() + begin, parameters.data_ptr<float>() + begin,
                moments.exp_avg.data_ptr<float>() + begin, moments.exp_avg_sq.data_ptr<float>() + begin);
    });
    return;
  }
  ForEachRange(parameters.numel(), undecayed, [&](int64_t begin, int64_t end, bool decay) {
    if (decay) parameters.narrow(0, begin, end - begin).mul_(1 - learning_rate * options.weight_decay);
  });
  moments.exp_avg.lerp_(gradient, 1 - options.beta1);
  moments.exp_avg_sq.mul_(options.beta2).addcmul_(gradient, gradient, 1 - options.beta2);
  const at::Tensor denominator = moments.exp_avg_sq.sqrt().div_(bias_correction2_sqrt).add_(options.epsilon);
  parameters.addcdiv_(moments.exp_avg, denominator, -step_size);
}

double GradientNorm(const at::Tensor& gradient) {
  if (!gradient.is_cpu()) {
    return std::sqrt(gradient.square().sum(at::kDouble).item<double>());
  }
  RETORT_CHECK(gradient.is_contiguous());
  constexpr int kLanes = 8;
  double lanes[kLanes] = {};
  const float* values = gradient.const_data_ptr<float>();
  const int64_t numel = gradient.numel();
  int64_t i = 0;
  for (; i + kLanes <= numel; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double value = values[i + lane];
      lanes[lane] += value * value;
    }
  }
  for (; i < numel; ++i) lanes[i % kLanes] += static_cast<double>(values[i]) * values[i];
  double sum = 0;
  for (const double lane : lanes) sum += lane;
  return std::sqrt(sum);
}

void ClipGradient(double norm, double max_norm, at::Tensor& gradient) {
  if (max_norm <= 0) return;
  const double scale = std::min(1.0, max_norm / (norm + 1e-6));
  if (scale < 1.0) gradient.mul_(scale);
}

}  // namespace retort
