#include "model/training/lora_linear.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include "model/lora_weights.h"
#include "model/training/head_loss.h"

namespace retort {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor Dropped(const at::Tensor& x, const at::Tensor& mask) {
  return mask.defined() ? x * mask.to(x.scalar_type()) : x;
}

// The graph takes no undefined tensors.
std::optional<at::Tensor> Given(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

at::Tensor Affine(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  return bias.defined() ? at::addmm(bias, x, weight.t()) : at::mm(x, weight.t());
}

// Of DoRA: no gradient goes through them.
at::Tensor AdaptedNorms(const Linear& base, const at::Tensor& a, const at::Tensor& b, double scaling) {
  const c10::NoGradGuard no_grad;
  return RowNorms(FrozenWeight(base, at::kFloat).add(at::mm(b, a), scaling));
}

// Carries a quantised weight from a forward to its backward pass, which widens it anew.
struct HeldMatrix : torch::CustomClassHolder {
  explicit HeldMatrix(SharedQuantizedMatrix held) : matrix(std::move(held)) {}
  const SharedQuantizedMatrix matrix;
};
constexpr char kHeld[] = "quantized";

void Hold(AutogradContext* context, const SharedQuantizedMatrix& matrix) {
  if (matrix != nullptr) context->saved_data[kHeld] = at::IValue::make_capsule(c10::make_intrusive<HeldMatrix>(matrix));
}

// The weight that a backward pass multiplies by: `plain`, or what was held.
at::Tensor BackwardWeight(AutogradContext* context, const at::Tensor& plain, c10::ScalarType dtype) {
  if (plain.defined()) return plain;
  const auto held = c10::static_intrusive_pointer_cast<HeldMatrix>(context->saved_data[kHeld].toCapsule());
  return FrozenWeight({.quantized = held->matrix}, dtype);
}

// Terms of a key's bias all but cancel: what is left must not be the sum's rounding.
at::Tensor BiasGradient(const at::Tensor& dy) { return dy.sum(0, /*keepdim=*/false, at::kDouble).to(dy.scalar_type()); }

struct QuantizedLinearFunction : torch::autograd::Function<QuantizedLinearFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const std::optional<at::Tensor>& bias,
                            const SharedQuantizedMatrix& quantized) {
    Hold(context, quantized);
    context->saved_data["wants_x"] = x.requires_grad();
    context->saved_data["wants_bias"] = bias.has_value() && bias->requires_grad();
    return Affine(x, Dequantise(*quantized, x.scalar_type()), bias.value_or(at::Tensor()));
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const at::Tensor& dy = grads[0];
    at::Tensor dx, d_bias;
    if (context->saved_data["wants_x"].toBool()) {
      dx = at::mm(dy, BackwardWeight(context, at::Tensor(), dy.scalar_type()));
    }
    if (context->saved_data["wants_bias"].toBool()) d_bias = BiasGradient(dy);
    return {dx, d_bias, at::Tensor()};
  }
};

struct LoraLinearFunction : torch::autograd::Function<LoraLinearFunction> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const std::optional<at::Tensor>& given_weight, const SharedQuantizedMatrix& quantized,
                            const std::optional<at::Tensor>& bias, const at::Tensor& a, const at::Tensor& b,
                            double scaling, const std::optional<at::Tensor>& given_mask) {
    const at::Tensor mask = given_mask.value_or(at::Tensor());
    const at::Tensor weight = given_weight.value_or(at::Tensor());
    at::Tensor y =
        Affine(x, weight.defined() ? weight : Dequantise(*quantized, x.scalar_type()), bias.value_or(at::Tensor()));
    Hold(context, quantized);
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
    const at::Tensor& dy = grads[0];
    const at::Tensor db = TransposedProduct(dy, low).mul_(scaling);
    const at::Tensor d_low = at::mm(dy, b).mul_(scaling);
    const at::Tensor da = TransposedProduct(d_low, Dropped(x, mask));
    at::Tensor dx;
    if (context->saved_data["wants_x"].toBool()) {
      dx = at::mm(dy, BackwardWeight(context, weight, dy.scalar_type()));
      if (mask.defined()) {
        dx.add_(Dropped(at::mm(d_low, a), mask));
      } else {
        dx.addmm_(d_low, a);
      }
    }
    at::Tensor d_bias;
    if (context->saved_data["wants_bias"].toBool()) d_bias = BiasGradient(dy);
    return {dx, at::Tensor(), at::Tensor(), d_bias, da, db, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor FrozenLinear(const at::Tensor& x, const Linear& base) {
  if (base.quantized != nullptr) return QuantizedLinearFunction::apply(x, Given(base.bias), base.quantized);
  return Affine(x, base.weight, base.bias);
}

at::Tensor LoraEmbedding(const at::Tensor& ids, const at::Tensor& table, const at::Tensor& a, const at::Tensor& b,
                         const at::Tensor& magnitude, double scaling, int64_t padding) {
  const at::Tensor low = at::embedding(a.t(), ids, padding);
  at::Tensor rows = table.index_select(0, ids).to(at::kFloat) + at::mm(low, b.t()) * scaling;
  if (magnitude.defined()) rows = rows * (magnitude / AdaptedNorms({.weight = table.t()}, a, b, scaling));
  return rows.to(table.scalar_type());
}

at::Tensor LoraLow(const at::Tensor& x, const at::Tensor& a, double scaling, const at::Tensor& mask) {
  return at::mm(Dropped(x.to(at::kFloat), mask), a.t()) * scaling;
}

at::Tensor DoraWeight(const at::Tensor& weight, const at::Tensor& a, const at::Tensor& b, const at::Tensor& magnitude,
                      double scaling) {
  const at::Tensor factor = magnitude / AdaptedNorms({.weight = weight}, a, b, scaling);
  return (weight.to(at::kFloat) + at::mm(b, a) * scaling) * factor.unsqueeze(1);
}

at::Tensor LoraLinear(const at::Tensor& x, const Linear& base, const at::Tensor& a, const at::Tensor& b, double scaling,
                      const at::Tensor& mask) {
  return LoraLinearFunction::apply(x, Given(base.weight), base.quantized, Given(base.bias), a, b, scaling, Given(mask));
}

at::Tensor DoraLinear(const at::Tensor& x, const Linear& base, const at::Tensor& a, const at::Tensor& b,
                      const at::Tensor& magnitude, double scaling, const at::Tensor& mask) {
  const c10::ScalarType dtype = x.scalar_type();
  const at::Tensor factor = (magnitude / AdaptedNorms(base, a, b, scaling)).to(dtype).unsqueeze(0);
  const at::Tensor dropped = Dropped(x, mask);
  const at::Tensor low = at::mm(at::mm(dropped, a.to(dtype).t()), b.to(dtype).t()) * scaling;
  const at::Tensor plain = FrozenLinear(dropped, {.weight = base.weight, .quantized = base.quantized});
  if (mask.defined()) return FrozenLinear(x, base) + (factor - 1.0) * plain + factor * low;
  const at::Tensor y = factor * (plain + low);
  return base.bias.defined() ? y + base.bias : y;
}

}  // namespace retort
