#include "model/training/fused_layer.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "model/training/dropout.h"

namespace retort::internal {
namespace {

std::vector<FusedLinear::Module> ModulesOf(const std::vector<Projection>& projections, int64_t layer,
                                           const LayerWeights& weights, const FlatAdapter& adapter) {
  std::vector<FusedLinear::Module> modules;
  modules.reserve(projections.size());
  for (const Projection projection : projections) {
    modules.push_back(
        {weights[projection], adapter.Find(absl::StrCat("model.layers.", layer, ".", ProjectionName(projection)))});
  }
  return modules;
}

FusedLinear Fuse(const std::vector<Projection>& projections, int64_t layer, const LayerWeights& weights,
                 const FlatAdapter& adapter) {
  const std::vector<FusedLinear::Module> modules = ModulesOf(projections, layer, weights, adapter);
  const at::Tensor& weight = modules.front().base.weight;
  return FusedLinear(modules, weight.size(1), weight.scalar_type(), weight.device());
}

}  // namespace

LinearGroups LinearGroupsOf(const ModelConfig& config) {
  if (config.fused_projections) return {{kQkv}, {kO}, {kGateUp}, {kDown}};
  return {{kQ, kK, kV}, {kO}, {kGate, kUp}, {kDown}};
}

FusedLayer::FusedLayer(const ModelConfig& config, int64_t index, const LayerWeights& weights,
                       const FlatAdapter& adapter)
    : config_(config),
      index_(index),
      input_norm_(weights.input_norm),
      post_attention_norm_(weights.post_attention_norm),
      q_norm_(weights.q_norm),
      k_norm_(weights.k_norm),
      qkv_(Fuse(LinearGroupsOf(config).qkv, index, weights, adapter)),
      o_(Fuse(LinearGroupsOf(config).o, index, weights, adapter)),
      gate_up_(Fuse(LinearGroupsOf(config).gate_up, index, weights, adapter)),
      down_(Fuse(LinearGroupsOf(config).down, index, weights, adapter)) {}

void FusedLayer::AppendBlocks(std::vector<FlatBlock>& blocks) const {
  for (const FusedLinear* linear : {&qkv_, &o_, &gate_up_, &down_}) linear->AppendBlocks(blocks);
}

int64_t FusedLayer::TapeWidth() const {
  const int64_t normed =
      config_.qk_norm ? (config_.num_attention_heads + config_.num_key_value_heads) * config_.head_dim : 0;
  const int64_t lows = 2 * (qkv_.low() + o_.low() + gate_up_.low() + down_.low());
  const int64_t statistics = 4 * config_.num_attention_heads;
  return config_.hidden_size + qkv_.out_features() + normed + o_.in_features() + gate_up_.out_features() + lows +
         statistics;
}

int64_t FusedLayer::WorkWidth() const {
  // The gradient stream, a norm and its gradient beside the wider of SwiGLU's and attention's gradients.
  return 4 * config_.hidden_size +
         std::max(down_.in_features() + down_.low(), 2 * qkv_.out_features() + qkv_.low() + 2 * o_.in_features());
}

Wide FusedLayer::MakeGradientStream(const std::vector<FusedLayer>& layers, int64_t tokens) {
  const FusedLinear* widest = &layers.front().o_;
  for (const FusedLayer& layer : layers) {
    for (const FusedLinear* linear : {&layer.o_, &layer.down_}) {
      if (linear->low() > widest->low()) widest = linear;
    }
  }
  return widest->MakeOutputGradient(tokens);
}

FusedLinear::Masks FusedLayer::MasksOf(const FusedPass& pass, const FusedLinear& linear, int64_t tokens) {
  FusedLinear::Masks masks;
  if (pass.dropout == 0.0) return masks;
  for (const AdapterSlot* slot : linear.slots()) {
    masks.push_back(DropoutMask(pass.dropout_key, static_cast<uint64_t>(slot->index), pass.dropout, tokens,
                                linear.in_features(), pass.cos.device()));
  }
  return masks;
}

at::Tensor FusedLayer::Heads(const at::Tensor& rows, int64_t first, int64_t heads) const {
  return rows.narrow(1, first * config_.head_dim, heads * config_.head_dim).unflatten(1, {heads, config_.head_dim});
}

AttentionOptions FusedLayer::AttentionOf(const FusedPass& pass) const {
  return {.scale = config_.attention_scale, .window = config_.window(index_), .deterministic = pass.deterministic};
}

void FusedLayer::NormHeads(const FusedPass& pass, Wide& qkv, LayerTape& tape) const {
  const int64_t heads = config_.num_attention_heads;
  tape.before = qkv.main.narrow(1, 0, (heads + config_.num_key_value_heads) * config_.head_dim).clone();
  at::Tensor q = Heads(qkv.main, 0, heads);
  at::Tensor k = Heads(qkv.main, heads, config_.num_key_value_heads);
  pass.ops->RmsNorm(Heads(tape.before, 0, heads), q_norm_, config_.rms_norm_eps, q);
  pass.ops->RmsNorm(Heads(tape.before, heads, config_.num_key_value_heads), k_norm_, config_.rms_norm_eps, k);
}

void FusedLayer::NormHeadsBackward(const FusedPass& pass, const LayerTape& tape, Wide& d_qkv) const {
  const int64_t heads = config_.num_attention_heads;
  const auto back = [&](int64_t first, int64_t count, const at::Tensor& weight) {
    at::Tensor gradient = Heads(d_qkv.main, first, count);
    pass.ops->RmsNormBackward(gradient, Heads(tape.before, first, count), weight, config_.rms_norm_eps, at::Tensor(),
                              gradient);
  };
  back(0, heads, q_norm_);
  back(heads, config_.num_key_value_heads, k_norm_);
}

at::Tensor FusedLayer::Forward(const FusedPass& pass, const at::Tensor& input, LayerTape& tape) const {
  const int64_t tokens = input.size(0);
  const int64_t heads = config_.num_attention_heads;
  const int64_t kv_heads = config_.num_key_value_heads;
  const double eps = config_.rms_norm_eps;
  tape.input = input;

  Wide normed = qkv_.MakeInput(tokens);
  pass.ops->RmsNorm(input, input_norm_, eps, normed.main);
  tape.qkv = qkv_.MakeOutputGradient(tokens);
  tape.qkv_low = qkv_.Forward(normed, MasksOf(pass, qkv_, tokens), tape.qkv.main);
  if (config_.qk_norm) NormHeads(pass, tape.qkv, tape);
  at::Tensor turned = tape.qkv.main.narrow(1, 0, (heads + kv_heads) * config_.head_dim);
  pass.ops->Rotate(turned, heads + kv_heads, pass.cos, pass.sin, /*inverse=*/false);

  tape.attended = o_.MakeInput(tokens);
  at::Tensor attended = Heads(tape.attended.main, 0, heads);
  AttendForward(Heads(tape.qkv.main, 0, heads), Heads(tape.qkv.main, heads, kv_heads),
                Heads(tape.qkv.main, heads + kv_heads, kv_heads), *pass.samples, AttentionOf(pass), attended,
                tape.attention);
  at::Tensor added = at::empty_like(input);
  tape.o_low = o_.Forward(tape.attended, MasksOf(pass, o_, tokens), added);
  tape.middle = input + added;

  normed = gate_up_.MakeInput(tokens);
  pass.ops->RmsNorm(tape.middle, post_attention_norm_, eps, normed.main);
  tape.gate_up = gate_up_.MakeOutputGradient(tokens);
  tape.gate_up_low = gate_up_.Forward(normed, MasksOf(pass, gate_up_, tokens), tape.gate_up.main);
  normed = {};
  Wide activated = down_.MakeInput(tokens);
  pass.ops->SwiGlu(tape.gate_up.main, activated.main);
  tape.down_low = down_.Forward(activated, MasksOf(pass, down_, tokens), added);
  return added.add_(tape.middle);
}

void FusedLayer::Backward(const FusedPass& pass, LayerTape& tape, bool want_input, const FlatAdapter& adapter,
                          Wide& stream, at::Tensor& gradient) const {
  const int64_t tokens = stream.main.size(0);
  const int64_t hidden = config_.hidden_size;
  const int64_t heads = config_.num_attention_heads;
  const int64_t kv_heads = config_.num_key_value_heads;
  const double eps = config_.rms_norm_eps;
  const auto options = stream.main.options();
  const auto as_gradient_of = [&](const FusedLinear& linear) {
    return Wide{stream.all.narrow(1, 0, hidden + linear.low()), stream.main};
  };

  at::Tensor d_activated = at::empty({tokens, config_.intermediate_size}, options);
  FusedLinear::Masks masks = MasksOf(pass, down_, tokens);
  at::Tensor d_low = down_.BackwardInput(as_gradient_of(down_), masks, d_activated);
  pass.ops->SwiGluBackward(d_activated, tape.gate_up.main, d_activated);
  down_.BackwardAdapters(stream.main, d_low, d_activated, tape.down_low, masks, adapter, gradient);
  d_activated = at::Tensor();

  at::Tensor d_normed = at::empty({tokens, hidden}, options);
  at::Tensor normed = at::empty({tokens, hidden}, options);
  masks = MasksOf(pass, gate_up_, tokens);
  d_low = gate_up_.BackwardInput(tape.gate_up, masks, d_normed);
  pass.ops->RmsNorm(tape.middle, post_attention_norm_, eps, normed);
  gate_up_.BackwardAdapters(tape.gate_up.main, d_low, normed, tape.gate_up_low, masks, adapter, gradient);
  tape.gate_up = {};
  pass.ops->RmsNormBackward(d_normed, tape.middle, post_attention_norm_, eps, stream.main, stream.main);
  tape.middle = at::Tensor();

  at::Tensor d_attended = at::empty({tokens, o_.in_features()}, options);
  masks = MasksOf(pass, o_, tokens);
  d_low = o_.BackwardInput(as_gradient_of(o_), masks, d_attended);
  o_.BackwardAdapters(stream.main, d_low, tape.attended.main, tape.o_low, masks, adapter, gradient);

  Wide d_qkv = qkv_.MakeOutputGradient(tokens);
  at::Tensor dq = Heads(d_qkv.main, 0, heads);
  at::Tensor dk = Heads(d_qkv.main, heads, kv_heads);
  at::Tensor dv = Heads(d_qkv.main, heads + kv_heads, kv_heads);
  AttendBackward(Heads(d_attended, 0, heads), Heads(tape.qkv.main, 0, heads), Heads(tape.qkv.main, heads, kv_heads),
                 Heads(tape.qkv.main, heads + kv_heads, kv_heads), Heads(tape.attended.main, 0, heads), tape.attention,
                 *pass.samples, AttentionOf(pass), dq, dk, dv);
  tape.qkv = tape.attended = {};
  tape.attention = {};
  at::Tensor turned = d_qkv.main.narrow(1, 0, (heads + kv_heads) * config_.head_dim);
  pass.ops->Rotate(turned, heads + kv_heads, pass.cos, pass.sin, /*inverse=*/true);
  if (config_.qk_norm) NormHeadsBackward(pass, tape, d_qkv);

  at::Tensor d_input = want_input ? d_normed : at::Tensor();
  masks = MasksOf(pass, qkv_, tokens);
  d_low = qkv_.BackwardInput(d_qkv, masks, d_input);
  pass.ops->RmsNorm(tape.input, input_norm_, eps, normed);
  qkv_.BackwardAdapters(d_qkv.main, d_low, normed, tape.qkv_low, masks, adapter, gradient);
  if (want_input) pass.ops->RmsNormBackward(d_input, tape.input, input_norm_, eps, stream.main, stream.main);
  tape = {};
}

}  // namespace retort::internal
