#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "model/gguf/config.h"
#include "model/gguf/rope.h"

namespace retort::gguf {
namespace {

using nlohmann::json;

constexpr int64_t kMaxDimension = int64_t{1} << 30;

// Reads a config's keys, null counting as absent; the first problem is kept and later reads return their fallback.
class Reader {
 public:
  Reader(const json& object, std::string where) : object_(object), where_(std::move(where)) {}

  const json* Find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  bool Has(const char* key) const { return Find(key) != nullptr; }

  int64_t Integer(const char* key, std::optional<int64_t> fallback = std::nullopt) {
    const json* value = Find(key);
    if (value == nullptr) {
      if (!fallback) Fail(key, "is missing");
      return fallback.value_or(1);
    }
    // Some configs have 1e6 where a whole number is meant.
    const bool whole = value->is_number_integer() ||
                       (value->is_number_float() && std::floor(value->get<double>()) == value->get<double>());
    if (!whole || value->get<double>() < 0 || value->get<double>() > static_cast<double>(kMaxDimension)) {
      Fail(key, "is no whole number from 0 to 2^30");
      return 1;
    }
    return value->get<int64_t>();
  }

  double Number(const char* key, std::optional<double> fallback = std::nullopt) {
    const json* value = Find(key);
    if (value == nullptr) {
      if (!fallback) Fail(key, "is missing");
      return fallback.value_or(1.0);
    }
    if (!value->is_number() || !std::isfinite(value->get<double>())) {
      Fail(key, "is no finite number");
      return 1.0;
    }
    return value->get<double>();
  }

  bool Boolean(const char* key, bool fallback) {
    const json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) Fail(key, "is neither true nor false");
    return value->is_boolean() ? value->get<bool>() : fallback;
  }

  std::string String(const char* key, const std::string& fallback) {
    const json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_string()) Fail(key, "is no string");
    return value->is_string() ? value->get<std::string>() : fallback;
  }

  std::vector<float> Numbers(const char* key) {
    const json* value = Find(key);
    std::vector<float> numbers;
    if (value == nullptr || !value->is_array()) {
      Fail(key, "is no list of numbers");
      return numbers;
    }
    for (const json& number : *value) {
      if (!number.is_number()) {
        Fail(key, "is no list of numbers");
        return {};
      }
      numbers.push_back(number.get<float>());
    }
    return numbers;
  }

  void Fail(const char* key, absl::string_view why) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(where_, key, " ", why));
  }
  const absl::Status& status() const { return status_; }
  const std::string& where() const { return where_; }

 private:
  const json& object_;
  const std::string where_;
  absl::Status status_;
};

absl::Status NoPlace(const std::string& where, absl::string_view what) {
  return absl::UnimplementedError(absl::StrCat(where, what, ": a GGUF file cannot say that"));
}

// The defaults of transformers' config classes, where they are not the number of heads.
int64_t DefaultKvHeads(const std::string& model_type, int64_t heads) {
  if (model_type == "mistral") return 8;
  if (model_type == "qwen2" || model_type == "qwen3") return 32;
  return heads;
}

double DefaultEps(const std::string& model_type) { return model_type == "phi3" ? 1e-5 : 1e-6; }

int64_t DefaultContext(const std::string& model_type) {
  if (model_type == "mistral") return 131072;
  if (model_type == "qwen2" || model_type == "qwen3") return 32768;
  return model_type == "phi3" || model_type == "deepseek_v3" ? 4096 : 2048;
}

struct Common {
  std::string model_type;
  int64_t heads = 0;
  int64_t head_dim = 0;
  int64_t context = 0;
  double theta = 10000.0;
};

double YarnMscale(double scale, double mscale) { return scale <= 1 ? 1.0 : 0.1 * mscale * std::log(scale) + 1.0; }

// What transformers multiplies rotated queries and keys with.
double YarnAttentionFactor(Reader& rope, double factor) {
  if (rope.Has("attention_factor")) return rope.Number("attention_factor");
  const double mscale = rope.Number("mscale", 0.0);
  const double all = rope.Number("mscale_all_dim", 0.0);
  if (mscale != 0 && all != 0) return YarnMscale(factor, mscale) / YarnMscale(factor, all);
  return YarnMscale(factor, 1.0);
}

class RopeWriter {
 public:
  RopeWriter(const std::string& architecture, const Common& common, Reader& top, Metadata& metadata,
             std::vector<std::string>& warnings)
      : prefix_(architecture + ".rope."), common_(common), top_(top), metadata_(metadata), warnings_(warnings) {}

  absl::StatusOr<std::vector<FactorTensor>> Write(Reader& rope, int64_t rotary_dim) {
    const std::string type = rope.String("rope_type", rope.String("type", "default"));
    metadata_.Uint32(prefix_ + "dimension_count", static_cast<uint32_t>(rotary_dim));
    metadata_.Float32(prefix_ + "freq_base", static_cast<float>(common_.theta));
    if (type == "default") return std::vector<FactorTensor>();
    if (type == "linear") {
      metadata_.String(prefix_ + "scaling.type", "linear");
      metadata_.Float32(prefix_ + "scaling.factor", static_cast<float>(rope.Number("factor")));
      return std::vector<FactorTensor>();
    }
    if (type == "yarn") return Yarn(rope);
    if (type == "llama3") return Llama3(rope, rotary_dim);
    if (type == "longrope" || type == "su") return LongRope(rope, rotary_dim);
    return NoPlace(rope.where(), absl::StrCat("rope_type is \"", type, "\""));
  }

 private:
  void OriginalContext(int64_t context) {
    metadata_.Uint32(prefix_ + "scaling.original_context_length", static_cast<uint32_t>(context));
  }

  absl::StatusOr<std::vector<FactorTensor>> Yarn(Reader& rope) {
    const double factor = rope.Number("factor");
    metadata_.String(prefix_ + "scaling.type", "yarn");
    metadata_.Float32(prefix_ + "scaling.factor", static_cast<float>(factor));
    OriginalContext(rope.Integer("original_max_position_embeddings",
                                 top_.Integer("original_max_position_embeddings", common_.context)));
    const bool all = rope.Number("mscale_all_dim", 0.0) != 0;
    if (all) {
      // Not consistent with other families' use of this key, but how DeepSeek's files have it.
      metadata_.Float32(prefix_ + "scaling.yarn_log_multiplier",
                        static_cast<float>(0.1 * rope.Number("mscale_all_dim")));
    }
    const double attention_factor = YarnAttentionFactor(rope, factor);
    const double understood = all ? 1.0 : YarnMscale(factor, 1.0);
    if (std::fabs(attention_factor - understood) > 1e-9) {
      metadata_.Float32(prefix_ + "scaling.yarn_attn_factor", static_cast<float>(attention_factor));
    }
    for (const auto& [key, usual] : {std::pair("beta_fast", 32.0), std::pair("beta_slow", 1.0)}) {
      if (!rope.Has(key)) continue;
      if (prefix_ == "llama.rope." && rope.Number(key) != usual) {
        warnings_.push_back(absl::StrCat("llama.cpp takes YaRN's ", key, " of ", rope.Number(key),
                                         " from its command line only (--yarn-beta-fast, --yarn-beta-slow)"));
      }
      metadata_.Float32(absl::StrCat(prefix_, "scaling.yarn_", key), static_cast<float>(rope.Number(key)));
    }
    return std::vector<FactorTensor>();
  }

  absl::StatusOr<std::vector<FactorTensor>> Llama3(Reader& rope, int64_t rotary_dim) {
    Llama3Scaling scaling;
    scaling.factor = rope.Number("factor");
    scaling.low_freq_factor = rope.Number("low_freq_factor");
    scaling.high_freq_factor = rope.Number("high_freq_factor");
    scaling.original_context = rope.Integer("original_max_position_embeddings");
    RETURN_IF_ERROR(rope.status());
    OriginalContext(scaling.original_context);
    return std::vector<FactorTensor>{{"rope_freqs.weight", Llama3Factors(scaling, common_.theta, rotary_dim)}};
  }

  absl::StatusOr<std::vector<FactorTensor>> LongRope(Reader& rope, int64_t rotary_dim) {
    std::vector<float> long_factors = rope.Numbers("long_factor");
    std::vector<float> short_factors = rope.Numbers("short_factor");
    RETURN_IF_ERROR(rope.status());
    const auto half = static_cast<size_t>(rotary_dim / 2);
    if (long_factors.size() != half || short_factors.size() != half) {
      return absl::InvalidArgumentError(
          absl::StrCat(rope.where(), "long_factor and short_factor: not ", half, " numbers each"));
    }
    const int64_t original = top_.Integer("original_max_position_embeddings",
                                          rope.Integer("original_max_position_embeddings", common_.context));
    if (original < 2) return absl::InvalidArgumentError(absl::StrCat(rope.where(), "original context of ", original));
    const double scale = rope.Has("factor") && !top_.Has("original_max_position_embeddings")
                             ? rope.Number("factor")
                             : static_cast<double>(common_.context) / static_cast<double>(original);
    const double attention_factor =
        rope.Number("attention_factor",
                    scale > 1.0 ? std::sqrt(1.0 + std::log(scale) / std::log(static_cast<double>(original))) : 1.0);
    metadata_.String(prefix_ + "scaling.type", "longrope");
    OriginalContext(original);
    metadata_.Float32(prefix_ + "scaling.attn_factor", static_cast<float>(attention_factor));
    return std::vector<FactorTensor>{{"rope_factors_long.weight", std::move(long_factors)},
                                     {"rope_factors_short.weight", std::move(short_factors)}};
  }

  const std::string prefix_;
  const Common& common_;
  Reader& top_;
  Metadata& metadata_;
  std::vector<std::string>& warnings_;
};

absl::Status WriteDeepseek(Reader& top, const std::string& prefix, Metadata& metadata) {
  const auto put = [&](const char* key, int64_t value) { metadata.Uint32(prefix + key, static_cast<uint32_t>(value)); };
  const int64_t experts = top.Integer("n_routed_experts", 0);
  const int64_t rope_dim = top.Integer("qk_rope_head_dim");
  const int64_t kv_rank = top.Integer("kv_lora_rank");
  if (top.Integer("moe_layer_freq", 1) != 1) return NoPlace(top.where(), "moe_layer_freq is not 1");
  put("leading_dense_block_count",
      top.Integer("first_k_dense_replace", experts > 0 ? 0 : top.Integer("num_hidden_layers")));
  if (top.Has("q_lora_rank")) put("attention.q_lora_rank", top.Integer("q_lora_rank"));
  put("attention.kv_lora_rank", kv_rank);
  // llama.cpp runs it as attention over one head of the latent, and unfolds that.
  put("attention.key_length", kv_rank + rope_dim);
  put("attention.value_length", kv_rank);
  put("attention.key_length_mla", top.Integer("qk_nope_head_dim") + rope_dim);
  put("attention.value_length_mla", top.Integer("v_head_dim"));
  put("expert_feed_forward_length", top.Integer("moe_intermediate_size"));
  put("expert_count", experts);
  put("expert_used_count", top.Integer("num_experts_per_tok", 0));
  put("expert_shared_count", top.Integer("n_shared_experts", 0));
  metadata.Float32(prefix + "expert_weights_scale", static_cast<float>(top.Number("routed_scaling_factor", 1.0)));
  if (top.Boolean("norm_topk_prob", false)) metadata.Bool(prefix + "expert_weights_norm", true);
  const bool v3 = top.String("model_type", "") == "deepseek_v3";
  if (const std::string scores = top.String("scoring_func", v3 ? "sigmoid" : "softmax"); scores == "sigmoid") {
    put("expert_gating_func", 2);
  } else if (scores == "softmax") {
    put("expert_gating_func", 1);
  } else {
    return NoPlace(top.where(), absl::StrCat("scoring_func is \"", scores, "\""));
  }
  // "greedy" passes over groups, whatever their number.
  if (top.String("topk_method", v3 ? "noaux_tc" : "greedy") != "greedy") {
    if (top.Has("n_group")) put("expert_group_count", top.Integer("n_group"));
    if (top.Has("topk_group")) put("expert_group_used_count", top.Integer("topk_group"));
  }
  return top.status();
}

// Whether each layer attends to a window only, as Qwen's configs say it; empty: none does.
std::vector<bool> SlidingLayers(Reader& top) {
  std::vector<bool> slides;
  const json* types = top.Find("layer_types");
  const int64_t layers = top.Integer("num_hidden_layers");
  const int64_t first = top.Integer("max_window_layers", 28);
  for (int64_t i = 0; i < layers; ++i) {
    if (types != nullptr && types->is_array() && types->size() == static_cast<size_t>(layers)) {
      slides.push_back((*types)[static_cast<size_t>(i)] == "sliding_attention");
    } else {
      slides.push_back(i >= first);
    }
  }
  return slides;
}

void WriteWindow(Reader& top, const Common& common, const std::string& prefix, Metadata& metadata,
                 std::vector<std::string>& warnings) {
  const auto put = [&](int64_t window) {
    metadata.Uint32(prefix + "attention.sliding_window", static_cast<uint32_t>(window));
    if (window > 0 && window < common.context) {
      warnings.push_back(absl::StrCat("llama.cpp does not heed the sliding window of ", window,
                                      " in this architecture: texts that are longer get other logits there"));
    }
  };
  if (common.model_type == "phi3") {
    put(top.Integer("sliding_window", 0));  // 0 says none, which llama.cpp wants to be told
  } else if (common.model_type == "mistral") {
    if (top.Has("sliding_window")) put(top.Integer("sliding_window"));
  } else if (top.Boolean("use_sliding_window", false) && top.Has("sliding_window")) {
    put(top.Integer("sliding_window"));
    metadata.Bools(prefix + "attention.sliding_window_pattern", SlidingLayers(top));
  }
}

absl::StatusOr<json> RopeObject(const json& config, const std::string& source) {
  for (const char* key : {"rope_parameters", "rope_scaling"}) {
    const auto it = config.find(key);
    if (it == config.end() || it->is_null()) continue;
    if (!it->is_object()) return absl::InvalidArgumentError(absl::StrCat(source, ": ", key, " is no object"));
    return *it;
  }
  return json::object();
}

}  // namespace

absl::StatusOr<Geometry> GeometryOf(const json& config, const std::string& source) {
  if (!config.is_object()) return absl::InvalidArgumentError(absl::StrCat(source, ": is no JSON object"));
  Reader top(config, absl::StrCat(source, ": "));
  const std::string model_type = top.String("model_type", "");
  Geometry geometry;
  geometry.layers = top.Integer("num_hidden_layers");
  geometry.heads = top.Integer("num_attention_heads");
  geometry.kv_heads = top.Integer("num_key_value_heads", DefaultKvHeads(model_type, geometry.heads));
  geometry.vocab_size = top.Integer("vocab_size");
  geometry.hidden_size = top.Integer("hidden_size");
  geometry.tied = top.Boolean("tie_word_embeddings", false);
  if (model_type == "deepseek_v2" || model_type == "deepseek_v3") {
    geometry.experts = top.Integer("n_routed_experts", 0);
    geometry.qk_nope_head_dim = top.Integer("qk_nope_head_dim");
    geometry.v_head_dim = top.Integer("v_head_dim");
    geometry.kv_lora_rank = top.Integer("kv_lora_rank");
    geometry.q_lora_rank = top.Integer("q_lora_rank", 0);
    geometry.dense_layers = top.Integer("first_k_dense_replace", 0);
    geometry.shared_experts = top.Integer("n_shared_experts", 0);
    if (geometry.qk_nope_head_dim == 0 || geometry.v_head_dim == 0 || geometry.kv_lora_rank == 0) {
      top.Fail("qk_nope_head_dim, v_head_dim or kv_lora_rank", "is 0");
    }
  }
  for (const auto& [key, value] :
       {std::pair("num_attention_heads", geometry.heads), std::pair("num_key_value_heads", geometry.kv_heads),
        std::pair("vocab_size", geometry.vocab_size), std::pair("hidden_size", geometry.hidden_size)}) {
    if (value == 0) top.Fail(key, "is 0");
  }
  constexpr int64_t kMaxLayers = 4096;
  constexpr int64_t kMaxExperts = 1 << 16;
  if (geometry.layers > kMaxLayers) top.Fail("num_hidden_layers", absl::StrCat("is over ", kMaxLayers));
  if (geometry.experts > kMaxExperts) top.Fail("n_routed_experts", absl::StrCat("is over ", kMaxExperts));
  RETURN_IF_ERROR(top.status());
  return geometry;
}

absl::StatusOr<std::vector<FactorTensor>> ConfigToMetadata(const json& config, const std::string& source,
                                                           const Family& family, Metadata& metadata,
                                                           std::vector<std::string>& warnings) {
  ASSIGN_OR_RETURN(const Geometry geometry, GeometryOf(config, source));
  ASSIGN_OR_RETURN(const json rope_object, RopeObject(config, source));
  Reader top(config, absl::StrCat(source, ": "));
  Reader rope(rope_object, absl::StrCat(source, ": rope_scaling."));
  const std::string architecture = family.architecture;
  const std::string prefix = architecture + ".";
  const bool deepseek = architecture == "deepseek2";
  Common common;
  common.model_type = top.String("model_type", "");
  common.heads = geometry.heads;
  const int64_t usual_head_dim =
      common.model_type == "qwen3" ? 128 : geometry.hidden_size / geometry.heads;  // as transformers defaults
  common.head_dim = deepseek ? top.Integer("qk_rope_head_dim") : top.Integer("head_dim", usual_head_dim);
  common.context = top.Integer("max_position_embeddings", DefaultContext(common.model_type));
  common.theta = rope.Number("rope_theta", top.Number("rope_theta", 10000.0));
  if (const std::string act = top.String("hidden_act", "silu"); act != "silu" && act != "swish") {
    return NoPlace(top.where(), absl::StrCat("hidden_act is \"", act, "\""));
  }
  const auto put = [&](const char* key, int64_t value) { metadata.Uint32(prefix + key, static_cast<uint32_t>(value)); };
  put("block_count", geometry.layers);
  put("context_length", common.context);
  put("embedding_length", geometry.hidden_size);
  put("feed_forward_length", top.Integer("intermediate_size"));
  put("attention.head_count", geometry.heads);
  put("attention.head_count_kv", deepseek ? 1 : geometry.kv_heads);
  metadata.Float32(prefix + "attention.layer_norm_rms_epsilon",
                   static_cast<float>(top.Number("rms_norm_eps", DefaultEps(common.model_type))));
  put("vocab_size", geometry.vocab_size);
  if (deepseek) {
    RETURN_IF_ERROR(WriteDeepseek(top, prefix, metadata));
  } else {
    put("attention.key_length", common.head_dim);
    put("attention.value_length", common.head_dim);
    WriteWindow(top, common, prefix, metadata, warnings);
  }
  const double partial = rope.Number("partial_rotary_factor", top.Number("partial_rotary_factor", 1.0));
  const auto rotary_dim = static_cast<int64_t>(static_cast<double>(common.head_dim) * partial);
  if (rotary_dim != common.head_dim && architecture == "llama") {
    return NoPlace(top.where(), "partial_rotary_factor is not 1");
  }
  RETURN_IF_ERROR(top.status());
  if (rotary_dim < 2 || rotary_dim % 2 != 0 || rotary_dim > 65536) {
    return absl::InvalidArgumentError(absl::StrCat(source, ": rotates ", rotary_dim, " dimensions of each head"));
  }
  ASSIGN_OR_RETURN(auto factors, RopeWriter(architecture, common, top, metadata, warnings).Write(rope, rotary_dim));
  RETURN_IF_ERROR(rope.status());
  RETURN_IF_ERROR(top.status());
  return factors;
}

}  // namespace retort::gguf
