// Which tensors a config asks for, under which names.
#include <ATen/ops/empty.h>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"
#include "model/weights.h"

namespace retort {
namespace {

constexpr absl::string_view kNames[kProjections] = {"self_attn.q_proj",
                                                    "self_attn.k_proj",
                                                    "self_attn.v_proj",
                                                    "self_attn.qkv_proj",
                                                    "self_attn.o_proj",
                                                    "self_attn.q_a_proj",
                                                    "self_attn.q_b_proj",
                                                    "self_attn.kv_a_proj_with_mqa",
                                                    "self_attn.kv_b_proj",
                                                    "mlp.gate_proj",
                                                    "mlp.up_proj",
                                                    "mlp.gate_up_proj",
                                                    "mlp.down_proj",
                                                    "mlp.shared_experts.gate_proj",
                                                    "mlp.shared_experts.up_proj",
                                                    "mlp.shared_experts.down_proj"};

using Visit = std::function<absl::Status(const TensorPlace&)>;

void AddAttention(const ModelConfig& config, std::vector<ProjectionShape>& shapes) {
  const int64_t hidden = config.hidden_size;
  const int64_t queries = config.num_attention_heads * config.head_dim;
  const int64_t keys = config.num_key_value_heads * config.head_dim;
  const int64_t values = config.num_attention_heads * config.value_head_dim();
  if (config.mla.has_value()) {
    const MlaConfig& mla = *config.mla;
    if (mla.q_lora_rank > 0) {
      shapes.push_back({kQDown, mla.q_lora_rank, hidden, config.qkv_bias});
      shapes.push_back({kQUp, queries, mla.q_lora_rank, false});
    } else {
      shapes.push_back({kQ, queries, hidden, false});
    }
    shapes.push_back({kKvDown, mla.kv_lora_rank + mla.qk_rope_head_dim, hidden, config.qkv_bias});
    shapes.push_back(
        {kKvUp, config.num_attention_heads * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank, false});
  } else if (config.fused_projections) {
    shapes.push_back({kQkv, queries + 2 * keys, hidden, config.qkv_bias});
  } else {
    shapes.push_back({kQ, queries, hidden, config.qkv_bias});
    shapes.push_back({kK, keys, hidden, config.qkv_bias});
    shapes.push_back({kV, keys, hidden, config.qkv_bias});
  }
  shapes.push_back({kO, hidden, values, config.o_bias});
}

absl::Status VisitNorms(const ModelConfig& config, const std::string& prefix, LayerWeights& layer, const Visit& visit) {
  const auto norm = [&](const char* name, int64_t width, at::Tensor& tensor) {
    return visit({absl::StrCat(prefix, "self_attn.", name, ".weight"), {width}, &tensor});
  };
  if (config.qk_norm) {
    RETURN_IF_ERROR(norm("q_norm", config.head_dim, layer.q_norm));
    RETURN_IF_ERROR(norm("k_norm", config.head_dim, layer.k_norm));
  }
  if (!config.mla.has_value()) return absl::OkStatus();
  if (config.mla->q_lora_rank > 0) {
    RETURN_IF_ERROR(norm("q_a_layernorm", config.mla->q_lora_rank, layer.q_down_norm));
  }
  return norm("kv_a_layernorm", config.mla->kv_lora_rank, layer.kv_down_norm);
}

absl::Status VisitExperts(const ModelConfig& config, const std::string& prefix, LayerWeights& layer,
                          const Visit& visit) {
  const MoeConfig& moe = *config.moe;
  const int64_t hidden = config.hidden_size;
  RETURN_IF_ERROR(visit({prefix + "mlp.gate.weight", {moe.num_experts, hidden}, &layer.router}));
  if (moe.correction_bias) {
    RETURN_IF_ERROR(
        visit({prefix + "mlp.gate.e_score_correction_bias", {moe.num_experts}, &layer.router_correction_bias}));
  }
  layer.experts.resize(static_cast<size_t>(moe.num_experts));
  for (size_t i = 0; i < layer.experts.size(); ++i) {
    Expert& expert = layer.experts[i];
    const std::string name = absl::StrCat(prefix, "mlp.experts.", i, ".");
    const auto matrix = [&](const char* end, int64_t rows, int64_t columns, at::Tensor& tensor) {
      return visit({name + end, {rows, columns}, &tensor, kProjections, static_cast<int64_t>(i)});
    };
    RETURN_IF_ERROR(matrix("gate_proj.weight", moe.intermediate_size, hidden, expert.gate));
    RETURN_IF_ERROR(matrix("up_proj.weight", moe.intermediate_size, hidden, expert.up));
    RETURN_IF_ERROR(matrix("down_proj.weight", hidden, moe.intermediate_size, expert.down));
  }
  return absl::OkStatus();
}

absl::Status VisitLayer(const ModelConfig& config, int64_t index, LayerWeights& layer, const Visit& visit) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  RETURN_IF_ERROR(visit({prefix + "input_layernorm.weight", {config.hidden_size}, &layer.input_norm}));
  for (const ProjectionShape& shape : ProjectionsOf(config, index)) {
    Linear& linear = layer[shape.projection];
    const std::string name = absl::StrCat(prefix, ProjectionName(shape.projection));
    RETURN_IF_ERROR(visit({name + ".weight",
                           {shape.out_features, shape.in_features},
                           &linear.weight,
                           shape.projection,
                           -1,
                           false,
                           &linear}));
    if (shape.bias) RETURN_IF_ERROR(visit({name + ".bias", {shape.out_features}, &linear.bias, shape.projection}));
  }
  RETURN_IF_ERROR(VisitNorms(config, prefix, layer, visit));
  if (config.is_moe(index)) RETURN_IF_ERROR(VisitExperts(config, prefix, layer, visit));
  return visit({prefix + "post_attention_layernorm.weight", {config.hidden_size}, &layer.post_attention_norm});
}

at::Tensor Rows(const at::Tensor& tensor, int64_t first, int64_t rows) {
  return tensor.defined() ? tensor.narrow(0, first, rows) : tensor;
}

}  // namespace

absl::string_view ProjectionName(Projection projection) {
  RETORT_CHECK(projection < kProjections);
  return kNames[projection];
}

std::vector<ProjectionShape> ProjectionsOf(const ModelConfig& config, int64_t layer) {
  std::vector<ProjectionShape> shapes;
  AddAttention(config, shapes);
  const int64_t hidden = config.hidden_size;
  if (config.is_moe(layer)) {
    const int64_t inner = config.moe->shared_intermediate_size;
    shapes.push_back({kSharedGate, inner, hidden, config.mlp_bias});
    shapes.push_back({kSharedUp, inner, hidden, config.mlp_bias});
    shapes.push_back({kSharedDown, hidden, inner, config.mlp_bias});
    return shapes;
  }
  const int64_t inner = config.intermediate_size;
  if (config.fused_projections) {
    shapes.push_back({kGateUp, 2 * inner, hidden, config.mlp_bias});
  } else {
    shapes.push_back({kGate, inner, hidden, config.mlp_bias});
    shapes.push_back({kUp, inner, hidden, config.mlp_bias});
  }
  shapes.push_back({kDown, hidden, inner, config.mlp_bias});
  return shapes;
}

absl::Status VisitTensors(ModelWeights& weights, const Visit& visit) {
  const ModelConfig& config = weights.config;
  weights.layers.resize(static_cast<size_t>(config.num_hidden_layers));
  RETURN_IF_ERROR(visit({"model.embed_tokens.weight",
                         {config.vocab_rows(), config.hidden_size},
                         &weights.embed_tokens,
                         kProjections,
                         -1,
                         /*vocabulary=*/true}));
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    RETURN_IF_ERROR(VisitLayer(config, static_cast<int64_t>(i), weights.layers[i], visit));
  }
  RETURN_IF_ERROR(visit({"model.norm.weight", {config.hidden_size}, &weights.final_norm}));
  if (config.tie_word_embeddings) return absl::OkStatus();
  return visit({"lm_head.weight",
                {config.vocab_rows(), config.hidden_size},
                &weights.lm_head,
                kProjections,
                -1,
                /*vocabulary=*/true});
}

std::array<Linear, 3> SplitQkv(const ModelConfig& config, const LayerWeights& layer) {
  if (!config.fused_projections) return {layer[kQ], layer[kK], layer[kV]};
  const int64_t queries = config.num_attention_heads * config.head_dim;
  const int64_t keys = config.num_key_value_heads * config.head_dim;
  const Linear& qkv = layer[kQkv];
  return {{{Rows(qkv.weight, 0, queries), Rows(qkv.bias, 0, queries)},
           {Rows(qkv.weight, queries, keys), Rows(qkv.bias, queries, keys)},
           {Rows(qkv.weight, queries + keys, keys), Rows(qkv.bias, queries + keys, keys)}}};
}

std::array<Linear, 2> SplitGateUp(const ModelConfig& config, const LayerWeights& layer) {
  if (!config.fused_projections) return {layer[kGate], layer[kUp]};
  const int64_t inner = config.intermediate_size;
  const Linear& both = layer[kGateUp];
  return {{{Rows(both.weight, 0, inner), Rows(both.bias, 0, inner)},
           {Rows(both.weight, inner, inner), Rows(both.bias, inner, inner)}}};
}

}  // namespace retort
