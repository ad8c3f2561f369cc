#include <ATen/ATen.h>

#include "model/training/fused_arguments.h"
#include "model/training/fused_ops.h"

namespace retort {
namespace {

using at::Tensor;

Tensor Single(const Tensor& tensor) { return tensor.to(at::kFloat); }

class ReferenceFlatBlocks final : public FlatBlocks {
 public:
  explicit ReferenceFlatBlocks(std::vector<FlatBlock> blocks)
      : blocks_(std::move(blocks)), end_(internal::EndOf(blocks_)) {}

  void Write(const Tensor& flat) const override {
    internal::CheckFlat(flat, end_);
    for (const FlatBlock& block : blocks_) {
      Tensor values = flat.view({-1}).narrow(0, block.offset, block.rows * block.columns).mul(block.scale);
      values = values.view({block.rows, block.columns});
      block.matrix.copy_(block.transposed ? values.t() : values);
    }
  }

 private:
  const std::vector<FlatBlock> blocks_;
  const int64_t end_;
};

class ReferenceOps final : public FusedOps {
 public:
  void RmsNorm(const Tensor& x, const Tensor& weight, double eps, Tensor& y) const override {
    internal::CheckRmsNorm(x, weight, y);
    const Tensor values = Single(x);
    y.copy_(values * InverseRms(values, eps) * Single(weight));
  }

  void RmsNormBackward(const Tensor& grad, const Tensor& x, const Tensor& weight, double eps, const Tensor& residual,
                       Tensor& dx) const override {
    internal::CheckRmsNormBackward(grad, x, weight, residual, dx);
    const Tensor values = Single(x);
    const Tensor inverse = InverseRms(values, eps);
    const Tensor weighted = Single(grad) * Single(weight);
    const Tensor along_x = (weighted * values).mean(-1, /*keepdim=*/true) * inverse.square();
    const Tensor gradient = inverse * (weighted - values * along_x);
    dx.copy_(residual.defined() ? Single(residual) + gradient : gradient);
  }

  void Rotate(Tensor& x, int64_t heads, const Tensor& cos, const Tensor& sin, bool inverse) const override {
    internal::CheckRotate(x, heads, cos, sin);
    const int64_t tokens = x.size(0);
    const int64_t half = cos.size(1);
    const Tensor by_head = x.unflatten(1, {heads, x.size(1) / heads});
    Tensor low = by_head.narrow(2, 0, half);
    Tensor high = by_head.narrow(2, half, half);
    const Tensor c = cos.view({tokens, 1, half});
    const Tensor s = inverse ? -sin.view({tokens, 1, half}) : sin.view({tokens, 1, half});
    const Tensor a = Single(low);
    const Tensor b = Single(high);
    const Tensor turned_low = a * c - b * s;
    const Tensor turned_high = b * c + a * s;
    low.copy_(turned_low);
    high.copy_(turned_high);
  }

  void SwiGlu(const Tensor& gate_up, Tensor& y) const override {
    internal::CheckSwiGlu(gate_up, y);
    const int64_t width = y.size(1);
    y.copy_(at::silu(Single(gate_up.narrow(1, 0, width))) * Single(gate_up.narrow(1, width, width)));
  }

  void SwiGluBackward(const Tensor& grad, Tensor& gate_up, Tensor& y) const override {
    internal::CheckSwiGluBackward(grad, gate_up, y);
    const int64_t width = grad.size(1);
    Tensor gate = gate_up.narrow(1, 0, width);
    Tensor up = gate_up.narrow(1, width, width);
    const Tensor gate_values = Single(gate);
    const Tensor up_values = Single(up);
    const Tensor gradient = Single(grad);
    const Tensor sigmoid = at::sigmoid(gate_values);
    const Tensor silu = gate_values * sigmoid;
    // All of it before any is written: what is f32 already is no copy.
    const Tensor value = silu * up_values;
    const Tensor gate_gradient = gradient * up_values * (sigmoid + silu * (1.0 - sigmoid));
    const Tensor up_gradient = gradient * silu;
    gate.copy_(gate_gradient);
    up.copy_(up_gradient);
    if (y.defined()) y.copy_(value);
  }

  void CrossEntropy(Tensor& logits, const Tensor& targets, float scale, bool gradient, Tensor& losses) const override {
    internal::CheckCrossEntropy(logits, targets, losses);
    const Tensor values = Single(logits);
    const Tensor index = targets.view({-1, 1});
    losses.copy_(at::log_softmax(values, 1).gather(1, index).neg().view({-1}));
    if (!gradient) return;
    Tensor slope = at::softmax(values, 1);
    slope.scatter_add_(1, index, at::full_like(index, -1, slope.options()));
    logits.copy_(slope.mul_(scale));
  }

  void SquareSum(const Tensor& x, Tensor& out) const override {
    internal::CheckSquareSum(x, out);
    out.copy_(x.to(at::kDouble).square().sum().view({1}));
  }

  void AdamW(const FusedAdamW& step, const Tensor& square_sum, double max_norm,
             const std::vector<std::pair<int64_t, int64_t>>& undecayed, const Tensor& gradient, Tensor& parameters,
             Tensor& exp_avg, Tensor& exp_avg_sq) const override {
    internal::CheckAdamW(square_sum, max_norm, gradient, parameters, exp_avg, exp_avg_sq);
    const RetortTrainAdamW s = internal::ScalarsOf(step, max_norm);
    Tensor g = gradient;
    if (max_norm > 0) {
      const Tensor wanted = max_norm / (square_sum.sqrt() + 1e-6);
      g = g * at::where(wanted < 1.0, wanted, at::ones_like(wanted)).to(at::kFloat);
    }
    Tensor decays = at::full_like(parameters, s.decay);
    for (const RetortTrainRange& range : internal::JoinedRanges(undecayed, parameters.numel())) {
      decays.view({-1}).narrow(0, range.first, range.last - range.first).fill_(1.0F);
    }
    // Sums and products apart: an add with a factor could be one operation, with one rounding less.
    exp_avg.add_((g - exp_avg).mul_(s.one_minus_beta1));
    exp_avg_sq.mul_(s.beta2).add_(g.mul(s.one_minus_beta2).mul_(g));
    // A root in f32 may be off by its last bit, depending on the library behind ATen; rounded from f64 it is right.
    const Tensor root = exp_avg_sq.to(at::kDouble).sqrt().to(at::kFloat);
    const Tensor denominator = root.div(at::full_like(root, s.bias_correction2_sqrt)).add_(s.epsilon);
    parameters.mul_(decays).add_(exp_avg.mul(s.negative_step_size).div_(denominator));
  }

  std::unique_ptr<FlatBlocks> MakeFlatBlocks(std::vector<FlatBlock> blocks) const override {
    for (const FlatBlock& block : blocks) internal::CheckFlatBlock(block);
    return std::make_unique<ReferenceFlatBlocks>(std::move(blocks));
  }

 private:
  static Tensor InverseRms(const Tensor& values, double eps) {
    return at::rsqrt(values.square().mean(-1, /*keepdim=*/true) + eps);
  }
};

}  // namespace

const FusedOps& FusedOps::Reference() {
  static const ReferenceOps ops;
  return ops;
}

}  // namespace retort
