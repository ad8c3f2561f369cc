// Cross-entropy through the output head, in slices of the vocabulary's logits.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace retort {

// Elements of the largest block of logits.
inline constexpr int64_t kLogitElements = int64_t{1} << 26;

// Cross-entropy of `hidden` [rows, width] through the head `weight` [vocab, width] against `targets` [rows]. Logits
// exist for some rows at a time, in f32.
struct HeadLoss {
  double loss = 0.0;  // sum over rows of -ln p(target)
  at::Tensor hidden;  // grad_scale * d(loss)/d(hidden); undefined when not asked for
  at::Tensor weight;  // grad_scale * d(loss)/d(weight), f32; undefined when not asked for
  at::Tensor low, b;  // grad_scale * d(loss)/d of the adapter's, f32; undefined without one or with `hidden`
};
// An adapter on the head: low b^T joins the logits. low [rows, r], b [vocab, r], f32; undefined where there is none.
struct HeadAdapter {
  at::Tensor low, b;
};
HeadLoss CrossEntropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets, double grad_scale,
                      bool want_hidden, bool want_weight = false, const HeadAdapter& adapter = {});

// left^T right in f32: left [rows, m], right [rows, n] of the compute dtype -> [m, n].
at::Tensor TransposedProduct(const at::Tensor& left, const at::Tensor& right);

}  // namespace retort
