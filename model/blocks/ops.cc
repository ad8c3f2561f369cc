#include "model/blocks/ops.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/blocks/attention.h"

namespace retort {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor InverseRms(const at::Tensor& wide, double eps) {
  return wide.square().mean(-1, /*keepdim=*/true).add_(eps).rsqrt_();
}

at::Tensor NormForward(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor wide = x.to(at::kFloat);
  const c10::ScalarType dtype = x.scalar_type() == at::kFloat ? weight.scalar_type() : x.scalar_type();
  return wide.mul(InverseRms(wide, eps)).to(dtype).mul_(weight);
}

struct NormFunction : torch::autograd::Function<NormFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight, double eps) {
    context->save_for_backward({x, weight});
    context->saved_data["eps"] = eps;
    context->saved_data["wants_weight"] = weight.requires_grad();
    return NormForward(x, weight, eps);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor wide = saved[0].to(at::kFloat);
    const at::Tensor inverse = InverseRms(wide, context->saved_data["eps"].toDouble());
    const at::Tensor normed = wide * inverse;
    const at::Tensor scaled = grads[0].to(at::kFloat) * saved[1].to(at::kFloat);
    const at::Tensor along = (scaled * normed).mean(-1, /*keepdim=*/true);
    at::Tensor d_weight;
    if (context->saved_data["wants_weight"].toBool()) {
      const int64_t width = normed.size(-1);
      d_weight = (grads[0].to(at::kFloat) * normed).reshape({-1, width}).sum(0).to(saved[1].scalar_type());
    }
    return {(scaled - normed * along).mul_(inverse).to(saved[0].scalar_type()), d_weight, at::Tensor()};
  }
};

// Half of the pairs' values each.
struct Pairs {
  at::Tensor low, high;
};

Pairs SplitPairs(const at::Tensor& x, bool interleaved) {
  const int64_t half = x.size(-1) / 2;
  if (!interleaved) return {x.narrow(-1, 0, half), x.narrow(-1, half, half)};
  const at::Tensor pairs = x.unflatten(-1, {half, 2});
  return {pairs.select(-1, 0), pairs.select(-1, 1)};
}

at::Tensor RotateForward(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool interleaved) {
  const int64_t dim = 2 * cos.size(-1);
  const Pairs pairs = SplitPairs(x.narrow(-1, 0, dim).to(at::kFloat), interleaved);
  const at::Tensor rotated =
      at::cat({pairs.low * cos - pairs.high * sin, pairs.high * cos + pairs.low * sin}, -1).to(x.scalar_type());
  if (dim == x.size(-1)) return rotated;
  return at::cat({rotated, x.narrow(-1, dim, x.size(-1) - dim)}, -1);
}

struct RotateFunction : torch::autograd::Function<RotateFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                            bool interleaved) {
    context->save_for_backward({cos, sin});
    context->saved_data["interleaved"] = interleaved;
    return RotateForward(x, cos, sin, interleaved);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    // What came out lies in halves; a rotation's transpose is the rotation back.
    at::Tensor dx = RotateForward(grads[0], saved[0], -saved[1], /*interleaved=*/false);
    if (context->saved_data["interleaved"].toBool()) {
      const int64_t half = saved[0].size(-1);
      const at::Tensor pairs = at::stack({dx.narrow(-1, 0, half), dx.narrow(-1, half, half)}, -1).flatten(-2);
      dx = 2 * half == dx.size(-1) ? pairs : at::cat({pairs, dx.narrow(-1, 2 * half, dx.size(-1) - 2 * half)}, -1);
    }
    return {dx, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

struct SwiGluFunction : torch::autograd::Function<SwiGluFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate, const at::Tensor& up) {
    context->save_for_backward({gate, up});
    return at::silu(gate).mul_(up);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    return {at::silu_backward(grads[0] * saved[1], saved[0]), grads[0] * at::silu(saved[0])};
  }
};

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const std::vector<int64_t>& offsets, double scale, int64_t window) {
    const Attention attention = AttentionForward(q, k, v, {offsets, scale, window});
    context->save_for_backward({q, k, v, attention.out, attention.log_sum});
    context->saved_data["offsets"] = offsets;
    context->saved_data["scale"] = scale;
    context->saved_data["window"] = window;
    return attention.out;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const std::vector<int64_t> offsets = context->saved_data["offsets"].toIntVector();
    const AttentionGradient d =
        AttentionBackward(grads[0], saved[0], saved[1], saved[2], {saved[3], saved[4]},
                          {offsets, context->saved_data["scale"].toDouble(), context->saved_data["window"].toInt()});
    return {d.q, d.k, d.v, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

bool Records(const at::Tensor& a) { return at::GradMode::is_enabled() && a.requires_grad(); }

}  // namespace

at::Tensor Multiply(const at::Tensor& x, const at::Tensor& weight) {
  if (x.scalar_type() == weight.scalar_type()) return at::matmul(x, weight.t());
  if (!x.is_cuda()) return at::matmul(x, weight.to(x.scalar_type()).t());
  // Both parts in one product: the weight is read once.
  const at::Tensor rows = x.reshape({-1, x.size(-1)});
  const at::Tensor high = rows.to(weight.scalar_type());
  const at::Tensor low = (rows - high).to(weight.scalar_type());
  const std::vector<at::Tensor> halves = at::mm(at::cat({high, low}), weight.t(), x.scalar_type()).chunk(2);
  std::vector<int64_t> shape = x.sizes().vec();
  shape.back() = weight.size(0);
  return (halves[0] + halves[1]).view(shape);
}

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return Records(x) || Records(weight) ? NormFunction::apply(x, weight, eps) : NormForward(x, weight, eps);
}

at::Tensor Rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool interleaved) {
  return Records(x) ? RotateFunction::apply(x, cos, sin, interleaved) : RotateForward(x, cos, sin, interleaved);
}

at::Tensor SwiGlu(const at::Tensor& gate, const at::Tensor& up) {
  if (Records(gate) || Records(up)) return SwiGluFunction::apply(gate, up);
  return at::silu(gate).mul_(up);
}

at::Tensor PackedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const std::vector<int64_t>& offsets, double scale, int64_t window) {
  if (Records(q) || Records(k) || Records(v)) return AttentionFunction::apply(q, k, v, offsets, scale, window);
  return AttentionForward(q, k, v, {offsets, scale, window}).out;
}

}  // namespace retort
