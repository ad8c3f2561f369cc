// The mixture of experts: who computes a token, and the computation.
#include <ATen/ATen.h>

#include <limits>
#include <optional>

#include "model/blocks/block.h"
#include "model/blocks/ops.h"

namespace retort {
namespace {

struct Routing {
  at::Tensor experts;  // [tokens, experts_per_token], int64
  at::Tensor weights;  // the same, f32, differentiable
};

// `scores` [tokens, experts] with those outside the best groups replaced by `out`.
at::Tensor LimitToGroups(const MoeConfig& moe, const at::Tensor& scores, double out) {
  if (moe.groups <= 1) return scores;
  const at::Tensor grouped = scores.view({scores.size(0), moe.groups, -1});
  const at::Tensor group_scores = moe.group_score == MoeConfig::GroupScore::kMax
                                      ? std::get<0>(grouped.max(-1))
                                      : std::get<0>(grouped.topk(2, -1)).sum(-1);
  const at::Tensor best = std::get<1>(group_scores.topk(moe.top_groups, -1));
  const at::Tensor mask = at::ones(group_scores.sizes(), group_scores.options().dtype(at::kBool))
                              .scatter_(1, best, false)
                              .unsqueeze(-1)
                              .expand(grouped.sizes())
                              .reshape(scores.sizes());
  return scores.masked_fill(mask, out);
}

Routing Route(const MoeConfig& moe, const LayerWeights& layer, const at::Tensor& x) {
  const at::Tensor logits = at::matmul(x.to(at::kFloat), layer.router.to(at::kFloat).t());
  const at::Tensor scores =
      moe.scoring == MoeConfig::Scoring::kSigmoid ? at::sigmoid(logits) : at::softmax(logits, -1, at::kFloat);
  at::Tensor choice = scores.detach();
  if (layer.router_correction_bias.defined()) choice = choice + layer.router_correction_bias.to(at::kFloat);
  // A correction may make scores negative: those that are out must lie below any.
  choice = LimitToGroups(moe, choice,
                         layer.router_correction_bias.defined() ? -std::numeric_limits<double>::infinity() : 0.0);
  Routing routing;
  routing.experts = std::get<1>(choice.topk(moe.experts_per_token, -1));
  // Without a correction the choice is among the scores themselves: one that is out, and still needed, weighs nothing.
  const at::Tensor weighed = layer.router_correction_bias.defined() ? scores : LimitToGroups(moe, scores, 0.0);
  routing.weights = weighed.gather(1, routing.experts);
  if (moe.normalize) routing.weights = routing.weights / (routing.weights.sum(-1, /*keepdim=*/true) + 1e-20);
  routing.weights = routing.weights * moe.routed_scaling_factor;
  return routing;
}

}  // namespace

at::Tensor RoutedExperts(const MoeConfig& moe, const LayerWeights& layer, const at::Tensor& x) {
  const Routing routing = Route(moe, layer, x);
  const int64_t tokens = x.size(0);
  const int64_t chosen = moe.experts_per_token;
  const at::Tensor expert_of = routing.experts.flatten();
  const at::Tensor order = std::get<1>(expert_of.sort(/*stable=*/std::optional<bool>(true), /*dim=*/0));
  const at::Tensor counts = at::bincount(expert_of, {}, moe.num_experts).to(at::kCPU);
  // Each choice has a row of its own: permutations have gradients without sums, so their bits depend on no order.
  const at::Tensor rows = x.unsqueeze(1).expand({tokens, chosen, x.size(1)}).reshape({tokens * chosen, -1});
  const at::Tensor sorted = rows.index_select(0, order);
  std::vector<at::Tensor> outs;
  int64_t first = 0;
  for (int64_t i = 0; i < moe.num_experts; ++i) {
    const int64_t count = counts.const_data_ptr<int64_t>()[i];
    if (count == 0) continue;
    const Expert& expert = layer.experts[static_cast<size_t>(i)];
    const at::Tensor part = sorted.narrow(0, first, count);
    // Another rank's adds nothing here.
    outs.push_back(expert.gate.defined()
                       ? Multiply(SwiGlu(Multiply(part, expert.gate), Multiply(part, expert.up)), expert.down)
                       : at::zeros_like(part));
    first += count;
  }
  const at::Tensor inverse = at::empty_like(order).scatter_(0, order, at::arange(order.size(0), order.options()));
  const at::Tensor back = at::cat(outs, 0).index_select(0, inverse).view({tokens, chosen, -1});
  return (back * routing.weights.unsqueeze(-1)).sum(1).to(x.scalar_type());
}

}  // namespace retort
