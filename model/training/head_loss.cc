#include "model/training/head_loss.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace retort {
at::Tensor TransposedProduct(const at::Tensor& left, const at::Tensor& right) {
  if (left.scalar_type() == at::kFloat) return at::mm(left.t(), right);
  if (left.is_cuda()) return at::mm(left.t(), right, at::kFloat);
  return at::mm(left.to(at::kFloat).t(), right.to(at::kFloat));
}

HeadLoss CrossEntropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets, double grad_scale,
                      bool want_hidden, bool want_weight, const HeadAdapter& adapter) {
  HeadLoss result;
  if (want_hidden) result.hidden = at::empty_like(hidden);
  if (want_weight) result.weight = at::zeros(weight.sizes(), weight.options().dtype(at::kFloat));
  if (want_hidden && adapter.low.defined()) {
    result.low = at::empty_like(adapter.low);
    result.b = at::zeros_like(adapter.b);
  }
  const int64_t rows = hidden.size(0);
  const int64_t chunk = std::max<int64_t>(1, kLogitElements / weight.size(0));
  at::Tensor loss = at::zeros({}, hidden.options().dtype(at::kDouble));
  for (int64_t begin = 0; begin < rows; begin += chunk) {
    const int64_t count = std::min(chunk, rows - begin);
    const at::Tensor part = hidden.narrow(0, begin, count);
    const at::Tensor target = targets.narrow(0, begin, count).unsqueeze(1);
    at::Tensor logits = at::mm(part, weight.t()).to(at::kFloat);
    if (adapter.low.defined()) logits.addmm_(adapter.low.narrow(0, begin, count), adapter.b.t());
    const at::Tensor log_sum = at::logsumexp(logits, 1, /*keepdim=*/true);
    loss += (log_sum - logits.gather(1, target)).to(at::kDouble).sum();
    if (!want_hidden && !want_weight) continue;
    at::Tensor gradient = logits.sub_(log_sum).exp_();
    gradient.scatter_add_(1, target, at::full({count, 1}, -1.0, gradient.options()));
    gradient.mul_(grad_scale);
    if (result.low.defined()) {
      result.low.narrow(0, begin, count).copy_(at::mm(gradient, adapter.b));
      result.b.addmm_(gradient.t(), adapter.low.narrow(0, begin, count));
    }
    const at::Tensor d_logits = gradient.to(weight.scalar_type());
    if (want_hidden) result.hidden.narrow(0, begin, count).copy_(at::mm(d_logits, weight));
    if (want_weight) result.weight.add_(TransposedProduct(d_logits, part));
  }
  result.loss = loss.item<double>();
  return result;
}

}  // namespace retort
