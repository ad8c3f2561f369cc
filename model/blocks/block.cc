#include "model/blocks/block.h"

#include <ATen/ATen.h>

#include "model/blocks/ops.h"

namespace retort {
namespace {

at::Tensor Heads(const at::Tensor& x, int64_t heads) { return x.reshape({x.size(0), heads, -1}); }

at::Tensor GroupedAttention(const ModelConfig& config, const LayerWeights& layer, int64_t index, const at::Tensor& x,
                            const RopeRows& rope, LayerContext& context) {
  const int64_t kv_heads = config.num_key_value_heads;
  at::Tensor q, k, v;
  if (config.fused_projections) {
    const at::Tensor qkv = context.Project(kQkv, x);
    const int64_t queries = config.num_attention_heads * config.head_dim;
    const int64_t keys = kv_heads * config.head_dim;
    q = qkv.narrow(1, 0, queries);
    k = qkv.narrow(1, queries, keys);
    v = qkv.narrow(1, queries + keys, keys);
  } else {
    q = context.Project(kQ, x);
    k = context.Project(kK, x);
    v = context.Project(kV, x);
  }
  q = Heads(q, config.num_attention_heads);
  k = Heads(k, kv_heads);
  v = Heads(v, kv_heads);
  if (config.qk_norm) {
    q = RmsNorm(q, layer.q_norm, config.rms_norm_eps);
    k = RmsNorm(k, layer.k_norm, config.rms_norm_eps);
  }
  q = Rotate(q, rope.cos, rope.sin, config.rope.interleaved);
  k = Rotate(k, rope.cos, rope.sin, config.rope.interleaved);
  return context.Attend(q, k, v, config.window(index)).flatten(1);
}

at::Tensor LatentAttention(const ModelConfig& config, const LayerWeights& layer, int64_t index, const at::Tensor& x,
                           const RopeRows& rope, LayerContext& context) {
  const MlaConfig& mla = *config.mla;
  const int64_t heads = config.num_attention_heads;
  const at::Tensor query =
      mla.q_lora_rank > 0 ? context.Project(kQUp, RmsNorm(context.Project(kQDown, x), layer.q_down_norm, mla.norm_eps))
                          : context.Project(kQ, x);
  const at::Tensor q = Heads(query, heads);
  const at::Tensor q_rotated =
      Rotate(q.narrow(2, mla.qk_nope_head_dim, mla.qk_rope_head_dim), rope.cos, rope.sin, config.rope.interleaved);

  const at::Tensor compressed = context.Project(kKvDown, x);
  const at::Tensor latent = RmsNorm(compressed.narrow(1, 0, mla.kv_lora_rank), layer.kv_down_norm, mla.norm_eps);
  // One rotated key serves all heads.
  const at::Tensor k_rotated = Rotate(Heads(compressed.narrow(1, mla.kv_lora_rank, mla.qk_rope_head_dim), 1), rope.cos,
                                      rope.sin, config.rope.interleaved);
  const at::Tensor expanded = Heads(context.Project(kKvUp, latent), heads);
  const at::Tensor k = at::cat(
      {expanded.narrow(2, 0, mla.qk_nope_head_dim), k_rotated.expand({k_rotated.size(0), heads, k_rotated.size(2)})},
      2);
  const at::Tensor v = expanded.narrow(2, mla.qk_nope_head_dim, mla.v_head_dim);
  return context.Attend(at::cat({q.narrow(2, 0, mla.qk_nope_head_dim), q_rotated}, 2), k, v, config.window(index))
      .flatten(1);
}

at::Tensor Mlp(const ModelConfig& config, const at::Tensor& x, LayerContext& context) {
  if (config.fused_projections) {
    const at::Tensor both = context.Project(kGateUp, x);
    return context.Project(kDown, SwiGlu(both.narrow(1, 0, config.intermediate_size),
                                         both.narrow(1, config.intermediate_size, config.intermediate_size)));
  }
  return context.Project(kDown, SwiGlu(context.Project(kGate, x), context.Project(kUp, x)));
}

}  // namespace

at::Tensor RunBlock(const ModelConfig& config, const LayerWeights& layer, int64_t index, const at::Tensor& x,
                    const RopeRows& rope, LayerContext& context) {
  const at::Tensor normed = RmsNorm(x, layer.input_norm, config.rms_norm_eps);
  const at::Tensor attended = config.mla.has_value() ? LatentAttention(config, layer, index, normed, rope, context)
                                                     : GroupedAttention(config, layer, index, normed, rope, context);
  const at::Tensor middle = x + context.Combine(context.Project(kO, attended));
  const at::Tensor inner = RmsNorm(middle, layer.post_attention_norm, config.rms_norm_eps);
  if (!config.is_moe(index)) return middle + context.Combine(Mlp(config, inner, context));
  const at::Tensor shared =
      context.Project(kSharedDown, SwiGlu(context.Project(kSharedGate, inner), context.Project(kSharedUp, inner)));
  return middle + context.Combine(RoutedExperts(*config.moe, layer, inner) + shared);
}

}  // namespace retort
