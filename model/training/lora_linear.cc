#include "model/training/lora_linear.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "model/lora_weights.h"
#include "model/training/head_loss.h"

namespace retort {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor Dropped(const at::Tensor& x, const at::Tensor& mask) {
  return mask.defined() ? x * mask.to(x.scalar_type()) : x;
}

struct LoraLinearFunction : torch::autograd::Function<LoraLinearFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, const at::Tensor& a, const at::Tensor& b,
                            double scaling, const std::optional<at::Tensor>& given_mask) {
    const at::Tensor mask = given_mask.value_or(at::Tensor());
    at::Tensor y = FrozenLinear(x, {weight, bias.value_or(at::Tensor())});
    const at::Tensor low = at::mm(Dropped(x, mask), a.to(x.scalar_type()).t());
    y.addmm_(low, b.to(x.scalar_type()).t(), 1.0, scaling);
    context->save_for_backward({x, weight, a, b, mask, low});
    context->saved_data["scaling"] = scaling;
    context->saved_data["wants_x"] = x.requires_grad();
    context->saved_data["wants_bias"] = bias.has_value() && bias->requires_grad();
    return y;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &weight = saved[1], &mask = saved[4], &low = saved[5];
    const at::Tensor a = saved[2].to(x.scalar_type());
    const at::Tensor b = saved[3].to(x.scalar_type());
    const double scaling = context->saved_data["scaling"].toDouble();
    const at::Tensor dy = grads[0];
    const at::Tensor db = TransposedProduct(dy, low).mul_(scaling);
    const at::Tensor d_low = at::mm(dy, b).mul_(scaling);
    const at::Tensor da = TransposedProduct(d_low, Dropped(x, mask));
    at::Tensor dx;
    if (context->saved_data["wants_x"].toBool()) {
      dx = at::mm(dy, weight);
      if (mask.defined()) {
        dx.add_(Dropped(at::mm(d_low, a), mask));
      } else {
        dx.addmm_(d_low, a);
      }
    }
    at::Tensor d_bias;
    // Terms of a key's bias all but cancel: what is left must not be the sum's rounding.
    if (context->saved_data["wants_bias"].toBool()) {
      d_bias = dy.sum(0, /*keepdim=*/false, at::kDouble).to(x.scalar_type());
    }
    return {dx, at::Tensor(), d_bias, da, db, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor FrozenLinear(const at::Tensor& x, const Linear& base) {
  return base.bias.defined() ? at::addmm(base.bias, x, base.weight.t()) : at::mm(x, base.weight.t());
}

at::Tensor LoraLinear(const at::Tensor& x, const Linear& base, const at::Tensor& a, const at::Tensor& b, double scaling,
                      const at::Tensor& mask) {
  // The graph takes no undefined tensors.
  const auto given = [](const at::Tensor& tensor) { return tensor.defined() ? std::optional(tensor) : std::nullopt; };
  return LoraLinearFunction::apply(x, base.weight, given(base.bias), a, b, scaling, given(mask));
}

at::Tensor DoraLinear(const at::Tensor& x, const Linear& base, const at::Tensor& a, const at::Tensor& b,
                      const at::Tensor& magnitude, double scaling, const at::Tensor& mask) {
  const c10::ScalarType dtype = x.scalar_type();
  at::Tensor norms;
  {
    const c10::NoGradGuard no_grad;
    norms = RowNorms(base.weight.to(at::kFloat).add(at::mm(b, a), scaling));
  }
  const at::Tensor factor = (magnitude / norms).to(dtype).unsqueeze(0);
  const at::Tensor dropped = Dropped(x, mask);
  const at::Tensor low = at::mm(at::mm(dropped, a.to(dtype).t()), b.to(dtype).t()) * scaling;
  const at::Tensor plain = at::mm(dropped, base.weight.t());
  if (mask.defined()) return FrozenLinear(x, base) + (factor - 1.0) * plain + factor * low;
  const at::Tensor y = factor * (plain + low);
  return base.bias.defined() ? y + base.bias : y;
}

}  // namespace retort
