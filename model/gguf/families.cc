#include "model/gguf/families.h"

#include <algorithm>
#include <iterator>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace retort::gguf {
namespace {

constexpr TensorRule kEmbedding = {"token_embd.weight", "model.embed_tokens.weight"};
constexpr TensorRule kFinalNorm = {"output_norm.weight", "model.norm.weight"};
constexpr TensorRule kHead = {"output.weight", "lm_head.weight"};
constexpr TensorRule kAttentionNorm = {"blk.{}.attn_norm.weight", "model.layers.{}.input_layernorm.weight"};
constexpr TensorRule kFfnNorm = {"blk.{}.ffn_norm.weight", "model.layers.{}.post_attention_layernorm.weight"};
constexpr TensorRule kQ = {"blk.{}.attn_q.weight", "model.layers.{}.self_attn.q_proj.weight"};
constexpr TensorRule kK = {"blk.{}.attn_k.weight", "model.layers.{}.self_attn.k_proj.weight"};
constexpr TensorRule kV = {"blk.{}.attn_v.weight", "model.layers.{}.self_attn.v_proj.weight"};
constexpr TensorRule kO = {"blk.{}.attn_output.weight", "model.layers.{}.self_attn.o_proj.weight"};
constexpr TensorRule kQBias = {"blk.{}.attn_q.bias", "model.layers.{}.self_attn.q_proj.bias"};
constexpr TensorRule kKBias = {"blk.{}.attn_k.bias", "model.layers.{}.self_attn.k_proj.bias"};
constexpr TensorRule kVBias = {"blk.{}.attn_v.bias", "model.layers.{}.self_attn.v_proj.bias"};
constexpr TensorRule kOBias = {"blk.{}.attn_output.bias", "model.layers.{}.self_attn.o_proj.bias"};
constexpr TensorRule kGate = {"blk.{}.ffn_gate.weight", "model.layers.{}.mlp.gate_proj.weight"};
constexpr TensorRule kUp = {"blk.{}.ffn_up.weight", "model.layers.{}.mlp.up_proj.weight"};
constexpr TensorRule kDown = {"blk.{}.ffn_down.weight", "model.layers.{}.mlp.down_proj.weight"};

constexpr TensorRule Rotary(TensorRule rule, Layout layout) { return {rule.gguf, rule.hf, layout}; }

constexpr TensorRule kLlama[] = {
    kEmbedding,
    kFinalNorm,
    kHead,
    kAttentionNorm,
    Rotary(kQ, Layout::kRotaryQ),
    Rotary(kK, Layout::kRotaryK),
    kV,
    kO,
    Rotary(kQBias, Layout::kRotaryQ),
    Rotary(kKBias, Layout::kRotaryK),
    kVBias,
    kOBias,
    kFfnNorm,
    kGate,
    kUp,
    kDown,
    {"blk.{}.ffn_gate.bias", "model.layers.{}.mlp.gate_proj.bias"},
    {"blk.{}.ffn_up.bias", "model.layers.{}.mlp.up_proj.bias"},
    {"blk.{}.ffn_down.bias", "model.layers.{}.mlp.down_proj.bias"},
};

constexpr TensorRule kQwen2[] = {
    kEmbedding, kFinalNorm, kHead, kAttentionNorm, kQ, kK, kV, kO, kQBias, kKBias, kVBias, kFfnNorm, kGate, kUp, kDown,
};

constexpr TensorRule kQwen3[] = {
    kEmbedding,
    kFinalNorm,
    kHead,
    kAttentionNorm,
    kQ,
    kK,
    kV,
    kO,
    kQBias,
    kKBias,
    kVBias,
    kOBias,
    {"blk.{}.attn_q_norm.weight", "model.layers.{}.self_attn.q_norm.weight"},
    {"blk.{}.attn_k_norm.weight", "model.layers.{}.self_attn.k_norm.weight"},
    kFfnNorm,
    kGate,
    kUp,
    kDown,
};

constexpr TensorRule kPhi3[] = {
    kEmbedding,
    kFinalNorm,
    kHead,
    kAttentionNorm,
    {"blk.{}.attn_qkv.weight", "model.layers.{}.self_attn.qkv_proj.weight"},
    kO,
    kFfnNorm,
    {"blk.{}.ffn_up.weight", "model.layers.{}.mlp.gate_up_proj.weight"},
    kDown,
};

constexpr TensorRule kDeepseek2[] = {
    kEmbedding,
    kFinalNorm,
    kHead,
    kAttentionNorm,
    kQ,
    {"blk.{}.attn_q_a.weight", "model.layers.{}.self_attn.q_a_proj.weight"},
    {"blk.{}.attn_q_a_norm.weight", "model.layers.{}.self_attn.q_a_layernorm.weight"},
    {"blk.{}.attn_q_b.weight", "model.layers.{}.self_attn.q_b_proj.weight"},
    {"blk.{}.attn_kv_a_mqa.weight", "model.layers.{}.self_attn.kv_a_proj_with_mqa.weight"},
    {"blk.{}.attn_kv_a_norm.weight", "model.layers.{}.self_attn.kv_a_layernorm.weight"},
    {"blk.{}.attn_k_b.weight", "model.layers.{}.self_attn.kv_b_proj.weight", Layout::kKeyOfKvB},
    {"blk.{}.attn_v_b.weight", "model.layers.{}.self_attn.kv_b_proj.weight", Layout::kValueOfKvB},
    // What older files have instead of the two before. Last, so that writing does not take it.
    {"blk.{}.attn_kv_b.weight", "model.layers.{}.self_attn.kv_b_proj.weight"},
    kO,
    kFfnNorm,
    kGate,
    kUp,
    kDown,
    {"blk.{}.ffn_gate_inp.weight", "model.layers.{}.mlp.gate.weight"},
    {"blk.{}.exp_probs_b.bias", "model.layers.{}.mlp.gate.e_score_correction_bias"},
    {"blk.{}.ffn_gate_exps.weight", "model.layers.{}.mlp.experts.{e}.gate_proj.weight", Layout::kExperts},
    {"blk.{}.ffn_up_exps.weight", "model.layers.{}.mlp.experts.{e}.up_proj.weight", Layout::kExperts},
    {"blk.{}.ffn_down_exps.weight", "model.layers.{}.mlp.experts.{e}.down_proj.weight", Layout::kExperts},
    {"blk.{}.ffn_gate_shexp.weight", "model.layers.{}.mlp.shared_experts.gate_proj.weight"},
    {"blk.{}.ffn_up_shexp.weight", "model.layers.{}.mlp.shared_experts.up_proj.weight"},
    {"blk.{}.ffn_down_shexp.weight", "model.layers.{}.mlp.shared_experts.down_proj.weight"},
};

constexpr Family kFamilies[] = {
    {"llama", kLlama}, {"qwen2", kQwen2}, {"qwen3", kQwen3}, {"phi3", kPhi3}, {"deepseek2", kDeepseek2},
};

struct ModelType {
  const char* model_type;
  const char* architecture;
};
constexpr ModelType kModelTypes[] = {
    {"llama", "llama"}, {"mistral", "llama"},         {"qwen2", "qwen2"},           {"qwen3", "qwen3"},
    {"phi3", "phi3"},   {"deepseek_v2", "deepseek2"}, {"deepseek_v3", "deepseek2"},
};

}  // namespace

const Family* FindFamily(absl::string_view architecture) {
  for (const Family& family : kFamilies) {
    if (architecture == family.architecture) return &family;
  }
  return nullptr;
}

const Family* FindFamilyOfModelType(absl::string_view model_type) {
  for (const ModelType& entry : kModelTypes) {
    if (model_type == entry.model_type) return FindFamily(entry.architecture);
  }
  return nullptr;
}

std::string SupportedArchitectures() {
  return absl::StrJoin(kFamilies, ", ",
                       [](std::string* out, const Family& family) { out->append(family.architecture); });
}

std::string SupportedModelTypes() {
  return absl::StrJoin(kModelTypes, ", ",
                       [](std::string* out, const ModelType& entry) { out->append(entry.model_type); });
}

std::string Fill(absl::string_view pattern, int64_t layer, int64_t expert) {
  return absl::StrReplaceAll(pattern, {{"{}", absl::StrCat(layer)}, {"{e}", absl::StrCat(expert)}});
}

std::optional<RuleMatch> MatchGgufName(const Family& family, absl::string_view name) {
  // "blk.<layer>.<rest>" against "blk.{}.<rest>".
  int64_t layer = -1;
  std::string pattern(name);
  if (absl::StartsWith(name, "blk.")) {
    const size_t end = name.find('.', 4);
    if (end == absl::string_view::npos) return std::nullopt;
    const absl::string_view number = name.substr(4, end - 4);
    // One spelling for each number: "01" is another name.
    if (!absl::SimpleAtoi(number, &layer) || layer < 0 || absl::StrCat(layer) != number) return std::nullopt;
    pattern = absl::StrCat("blk.{}", name.substr(end));
  }
  for (const TensorRule& rule : family.rules) {
    if (pattern == rule.gguf) return RuleMatch{&rule, layer};
  }
  return std::nullopt;
}

}  // namespace retort::gguf
