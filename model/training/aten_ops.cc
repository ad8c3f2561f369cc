#include "model/training/aten_ops.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace retort {
namespace {

// Elements of the largest f32 block of logits.
constexpr int64_t kLogitElements = int64_t{1} << 26;

at::Tensor InverseRms(const at::Tensor& x, double eps) {
  return x.square().mean(-1, /*keepdim=*/true).add_(eps).rsqrt_();
}

}  // namespace

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor wide = x.to(at::kFloat);
  return wide.mul(InverseRms(wide, eps)).to(x.scalar_type()).mul_(weight);
}

at::Tensor RmsNormBackward(const at::Tensor& dy, const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor inverse = InverseRms(wide, eps);
  const at::Tensor normed = wide * inverse;
  const at::Tensor scaled = dy.to(at::kFloat) * weight.to(at::kFloat);
  const at::Tensor along = (scaled * normed).mean(-1, /*keepdim=*/true);
  return (scaled - normed * along).mul_(inverse).to(x.scalar_type());
}

at::Tensor RotateHalf(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const int64_t half = x.size(-1) / 2;
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor low = wide.narrow(-1, 0, half);
  const at::Tensor high = wide.narrow(-1, half, half);
  return at::cat({low * cos - high * sin, high * cos + low * sin}, -1).to(x.scalar_type());
}

at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up) { return at::silu(gate).mul_(up); }

SwiGluGradient SwiGluBackward(const at::Tensor& dy, const at::Tensor& gate, const at::Tensor& up) {
  return {at::silu_backward(dy * up, gate), dy * at::silu(gate)};
}

HeadLoss CrossEntropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets, double grad_scale,
                      bool want_gradient) {
  HeadLoss result;
  if (want_gradient) result.hidden = at::empty_like(hidden);
  const int64_t rows = hidden.size(0);
  const int64_t chunk = std::max<int64_t>(1, kLogitElements / weight.size(0));
  at::Tensor loss = at::zeros({}, hidden.options().dtype(at::kDouble));
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const at::Tensor part = hidden.narrow(0, begin, count);
    const at::Tensor target = targets.narrow(0, begin, count).unsqueeze(1);
    at::Tensor logits = at::mm(part, weight.t()).to(at::kFloat);
    const at::Tensor log_sum = at::logsumexp(logits, 1, /*keepdim=*/true);
    loss += (log_sum - logits.gather(1, target)).to(at::kDouble).sum();
    if (!want_gradient) continue;
    at::Tensor gradient = logits.sub_(log_sum).exp_();
    gradient.scatter_add_(1, target, at::full({count, 1}, -1.0, gradient.options()));
    result.hidden.narrow(0, begin, count).copy_(at::mm(gradient.mul_(grad_scale).to(weight.scalar_type()), weight));
  }
  result.loss = loss.item<double>();
  return result;
}

}  // namespace retort
