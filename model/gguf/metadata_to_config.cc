#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"
#include "model/gguf/config.h"
#include "model/gguf/quants.h"
#include "model/gguf/rope.h"

namespace retort::gguf {
namespace {

using nlohmann::json;

constexpr int64_t kMaxDimension = int64_t{1} << 30;
constexpr int64_t kSigmoid = 2;  // expert_gating_func

// Reads "<architecture>.<key>"; the first problem is kept and later reads return their fallback.
class Keys {
 public:
  Keys(const File& file, std::string architecture) : file_(file), prefix_(std::move(architecture) + ".") {}

  bool Has(absl::string_view key) const { return file_.Has(prefix_ + std::string(key)); }

  // Required.
  int64_t Integer(absl::string_view key) { return Checked(key, file_.Integer(prefix_ + std::string(key))); }
  int64_t Integer(absl::string_view key, int64_t fallback) { return Has(key) ? Integer(key) : fallback; }

  double Number(absl::string_view key) {
    const std::string name = prefix_ + std::string(key);
    const auto value = file_.Number(name);
    if (!value.ok()) {
      Keep(value.status());
      return 1;
    }
    // Only what is a float in the file was a shorter decimal before.
    return file_.Find(name)->type == ValueType::kFloat32 ? ShortestDouble(static_cast<float>(*value)) : *value;
  }
  double Number(absl::string_view key, double fallback) { return Has(key) ? Number(key) : fallback; }

  bool Boolean(absl::string_view key, bool fallback) {
    if (!Has(key)) return fallback;
    const auto value = file_.Boolean(prefix_ + std::string(key));
    if (!value.ok()) Keep(value.status());
    return value.ok() ? *value : fallback;
  }

  std::string String(absl::string_view key, const std::string& fallback) {
    if (!Has(key)) return fallback;
    const auto value = file_.String(prefix_ + std::string(key));
    if (!value.ok()) Keep(value.status());
    return value.ok() ? *value : fallback;
  }

  void Keep(const absl::Status& status) {
    if (status_.ok()) status_ = status;
  }
  const absl::Status& status() const { return status_; }

 private:
  int64_t Checked(absl::string_view key, const absl::StatusOr<int64_t>& value) {
    if (!value.ok()) {
      Keep(value.status());
      return 1;
    }
    if (*value < 0 || *value > kMaxDimension) {
      Keep(absl::InvalidArgumentError(
          absl::StrCat(file_.path(), ": metadata key \"", prefix_, key, "\" is ", *value, ", out of range")));
      return 1;
    }
    return *value;
  }

  const File& file_;
  const std::string prefix_;
  absl::Status status_;
};

absl::StatusOr<std::vector<float>> Factors(const File& file, absl::string_view name) {
  const TensorInfo* tensor = file.FindTensor(name);
  if (tensor == nullptr) return absl::NotFoundError(absl::StrCat(file.path(), ": tensor \"", name, "\" is missing"));
  if (tensor->type != TensorType::kF32 || tensor->shape.size() != 1 || tensor->shape[0] > kMaxDimension / 1024) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tensor \"", name, "\" is no short list of F32"));
  }
  std::vector<float> values(static_cast<size_t>(tensor->shape[0]));
  Dequantise(tensor->type, file.Data(*tensor).data(), tensor->shape[0], values.data());
  for (const float value : values) {
    if (!std::isfinite(value) || value <= 0) {
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": tensor \"", name, "\" holds ", value));
    }
  }
  return values;
}

json Shortest(const std::vector<float>& values) {
  json list = json::array();
  for (const float value : values) list.push_back(ShortestDouble(value));
  return list;
}

// longrope's factor on attention where the config does not give one.
double LongRopeAttentionFactor(double scale, double original_context) {
  return scale > 1.0 ? std::sqrt(1.0 + std::log(scale) / std::log(original_context)) : 1.0;
}

absl::Status ReadLongRope(const File& file, Keys& keys, json& config) {
  ASSIGN_OR_RETURN(const std::vector<float> long_factors, Factors(file, "rope_factors_long.weight"));
  ASSIGN_OR_RETURN(const std::vector<float> short_factors, Factors(file, "rope_factors_short.weight"));
  const int64_t context = config["max_position_embeddings"].get<int64_t>();
  const int64_t original = keys.Integer("rope.scaling.original_context_length", context);
  config["original_max_position_embeddings"] = original;
  json rope = {
      {"type", "longrope"}, {"long_factor", Shortest(long_factors)}, {"short_factor", Shortest(short_factors)}};
  if (keys.Has("rope.scaling.attn_factor")) {
    const double given = keys.Number("rope.scaling.attn_factor");
    const double usual = LongRopeAttentionFactor(static_cast<double>(context) / static_cast<double>(original),
                                                 static_cast<double>(original));
    if (std::fabs(given - usual) > 1e-6) rope["attention_factor"] = given;
  }
  config["rope_scaling"] = std::move(rope);
  return absl::OkStatus();
}

absl::Status ReadRopeFreqs(const File& file, Keys& keys, int64_t rotary_dim, json& config) {
  ASSIGN_OR_RETURN(const std::vector<float> factors, Factors(file, "rope_freqs.weight"));
  const double theta = config["rope_theta"].get<double>();
  const auto scaling =
      FindLlama3Scaling(factors, theta, rotary_dim, keys.Integer("rope.scaling.original_context_length", 0));
  if (scaling) {
    config["rope_scaling"] = {{"rope_type", "llama3"},
                              {"factor", ShortestDouble(static_cast<float>(scaling->factor))},
                              {"low_freq_factor", scaling->low_freq_factor},
                              {"high_freq_factor", scaling->high_freq_factor},
                              {"original_max_position_embeddings", scaling->original_context}};
    return absl::OkStatus();
  }
  // Any other factors are what longrope divides by too, the same at every length.
  config["original_max_position_embeddings"] = config["max_position_embeddings"];
  config["rope_scaling"] = {{"type", "longrope"},
                            {"long_factor", Shortest(factors)},
                            {"short_factor", Shortest(factors)},
                            {"attention_factor", 1.0}};
  return absl::OkStatus();
}

absl::Status ReadRope(const File& file, Keys& keys, int64_t rotary_dim, json& config) {
  config["rope_theta"] = keys.Number("rope.freq_base", 10000.0);
  const std::string type = keys.String("rope.scaling.type", keys.Has("rope.scale_linear") ? "linear" : "none");
  RETURN_IF_ERROR(keys.status());
  if (file.FindTensor("rope_factors_long.weight") != nullptr) return ReadLongRope(file, keys, config);
  if (file.FindTensor("rope_freqs.weight") != nullptr) return ReadRopeFreqs(file, keys, rotary_dim, config);
  config["rope_scaling"] = nullptr;
  if (type == "none") return absl::OkStatus();
  const double factor =
      keys.Has("rope.scaling.factor") ? keys.Number("rope.scaling.factor") : keys.Number("rope.scale_linear", 1.0);
  if (type == "linear") {
    if (factor != 1.0) config["rope_scaling"] = {{"type", "linear"}, {"factor", factor}};
    return absl::OkStatus();
  }
  if (type != "yarn") {
    return absl::UnimplementedError(absl::StrCat(file.path(), ": rope.scaling.type \"", type,
                                                 "\" is not supported; none, linear, yarn and longrope are"));
  }
  json rope = {{"type", "yarn"},
               {"factor", factor},
               {"original_max_position_embeddings", keys.Integer("rope.scaling.original_context_length")}};
  const std::pair<const char*, const char*> optional[] = {{"rope.scaling.yarn_attn_factor", "attention_factor"},
                                                          {"rope.scaling.yarn_beta_fast", "beta_fast"},
                                                          {"rope.scaling.yarn_beta_slow", "beta_slow"}};
  for (const auto& [from, to] : optional) {
    if (keys.Has(from)) rope[to] = keys.Number(from);
  }
  if (keys.Has("rope.scaling.yarn_log_multiplier")) {
    // 0.1 times mscale_all_dim; the published models have the same mscale, which no key holds.
    const double mscale = ShortestDouble(static_cast<float>(keys.Number("rope.scaling.yarn_log_multiplier") * 10.0));
    rope["mscale"] = mscale;
    rope["mscale_all_dim"] = mscale;
  }
  config["rope_scaling"] = std::move(rope);
  return absl::OkStatus();
}

bool HasTensor(const File& file, const char* name) { return file.FindTensor(name) != nullptr; }

void SetDeepseek(const File& file, Keys& keys, json& config) {
  const bool mla = keys.Has("attention.key_length_mla");
  const int64_t rope_dim = keys.Integer("rope.dimension_count");
  config["qk_rope_head_dim"] = rope_dim;
  config["qk_nope_head_dim"] = keys.Integer(mla ? "attention.key_length_mla" : "attention.key_length") - rope_dim;
  config["v_head_dim"] = keys.Integer(mla ? "attention.value_length_mla" : "attention.value_length");
  config["kv_lora_rank"] = keys.Integer("attention.kv_lora_rank");
  config["q_lora_rank"] = keys.Has("attention.q_lora_rank") ? json(keys.Integer("attention.q_lora_rank")) : json();
  config["num_key_value_heads"] = config["num_attention_heads"];
  config.erase("head_dim");
  const int64_t layers = config["num_hidden_layers"].get<int64_t>();
  config["first_k_dense_replace"] = keys.Integer("leading_dense_block_count", 0);
  config["moe_layer_freq"] = 1;
  config["moe_intermediate_size"] = keys.Integer("expert_feed_forward_length");
  config["n_routed_experts"] = keys.Integer("expert_count", 0);
  config["num_experts_per_tok"] = keys.Integer("expert_used_count", 0);
  config["n_shared_experts"] = keys.Integer("expert_shared_count", 0);
  config["routed_scaling_factor"] = keys.Number("expert_weights_scale", 1.0);
  config["norm_topk_prob"] = keys.Boolean("expert_weights_norm", false);
  const bool bias = layers > 0 && HasTensor(file, absl::StrCat("blk.", layers - 1, ".exp_probs_b.bias").c_str());
  const bool sigmoid = keys.Integer("expert_gating_func", bias ? kSigmoid : 1) == kSigmoid;
  // Files older than these two keys: of DeepSeek's models only V3 and R1 have 256 experts and this gate.
  const bool v3 = sigmoid && config["n_routed_experts"] == 256;
  const int64_t groups = keys.Integer("expert_group_count", v3 ? 8 : 1);
  config["n_group"] = groups;
  config["topk_group"] = keys.Integer("expert_group_used_count", v3 ? 4 : 1);
  config["scoring_func"] = sigmoid ? "sigmoid" : "softmax";
  config["topk_method"] = sigmoid ? "noaux_tc" : groups > 1 ? "group_limited_greedy" : "greedy";
  config["model_type"] = sigmoid ? "deepseek_v3" : "deepseek_v2";
  config["architectures"] = {sigmoid ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM"};
  config["num_nextn_predict_layers"] = 0;
}

absl::Status SetFamily(const File& file, Keys& keys, const std::string& architecture, json& config) {
  const auto type = [&](const char* model_type, const char* name) {
    config["model_type"] = model_type;
    config["architectures"] = {name};
  };
  const int64_t window = keys.Integer("attention.sliding_window", 0);
  if (architecture == "llama") {
    // llama.cpp calls Mistral llama too; the window is what tells them apart, and all that does.
    if (window > 0) {
      type("mistral", "MistralForCausalLM");
      config["sliding_window"] = window;
    } else {
      type("llama", "LlamaForCausalLM");
      config["attention_bias"] = HasTensor(file, "blk.0.attn_q.bias");
      config["mlp_bias"] = HasTensor(file, "blk.0.ffn_gate.bias");
    }
  } else if (architecture == "qwen2" || architecture == "qwen3") {
    architecture == "qwen2" ? type("qwen2", "Qwen2ForCausalLM") : type("qwen3", "Qwen3ForCausalLM");
    if (architecture == "qwen3") config["attention_bias"] = HasTensor(file, "blk.0.attn_q.bias");
    config["use_sliding_window"] = window > 0;
    config["sliding_window"] = window > 0 ? json(window) : json();
    if (window > 0 && keys.Has("attention.sliding_window_pattern")) {
      ASSIGN_OR_RETURN(const auto pattern, file.Booleans(architecture + ".attention.sliding_window_pattern"));
      config["layer_types"] = json::array();
      for (const bool slides : pattern) {
        config["layer_types"].push_back(slides ? "sliding_attention" : "full_attention");
      }
    }
  } else if (architecture == "phi3") {
    type("phi3", "Phi3ForCausalLM");
    config["sliding_window"] = window > 0 ? json(window) : json();
    config.erase("head_dim");
    if (!config.contains("original_max_position_embeddings")) {
      config["original_max_position_embeddings"] = config["max_position_embeddings"];
    }
  } else {
    RETORT_CHECK(architecture == "deepseek2");
    SetDeepseek(file, keys, config);
  }
  return keys.status();
}

absl::StatusOr<json> TokenId(const File& file, const char* key) {
  if (!file.Has(key)) return json();
  ASSIGN_OR_RETURN(const int64_t id, file.Integer(key));
  return json(id);
}

absl::Status SetTokenIds(const File& file, json& config) {
  ASSIGN_OR_RETURN(config["bos_token_id"], TokenId(file, "tokenizer.ggml.bos_token_id"));
  ASSIGN_OR_RETURN(json eos, TokenId(file, "tokenizer.ggml.eos_token_id"));
  // What else ends a turn: chat models name it apart.
  json all = json::array();
  if (!eos.is_null()) all.push_back(eos);
  for (const char* key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"}) {
    ASSIGN_OR_RETURN(const json id, TokenId(file, key));
    if (!id.is_null() && std::find(all.begin(), all.end(), id) == all.end()) all.push_back(id);
  }
  config["eos_token_id"] = all.size() > 1 ? all : all.size() == 1 ? all[0] : json();
  ASSIGN_OR_RETURN(config["pad_token_id"], TokenId(file, "tokenizer.ggml.padding_token_id"));
  return absl::OkStatus();
}

}  // namespace

double ShortestDouble(float value) {
  char text[64];
  const auto written = std::to_chars(text, text + sizeof(text), value);
  RETORT_CHECK(written.ec == std::errc());
  double result = 0;
  const auto read = std::from_chars(text, written.ptr, result);
  return read.ec == std::errc() ? result : static_cast<double>(value);
}

absl::StatusOr<json> ConfigFromGguf(const File& file) {
  ASSIGN_OR_RETURN(const std::string architecture, file.String("general.architecture"));
  if (FindFamily(architecture) == nullptr) {
    return absl::UnimplementedError(absl::StrCat(file.path(), ": general.architecture \"", architecture,
                                                 "\" is not supported; these are: ", SupportedArchitectures()));
  }
  const TensorInfo* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": there is no matrix \"token_embd.weight\""));
  }
  Keys keys(file, architecture);
  const int64_t hidden = keys.Integer("embedding_length");
  const int64_t heads = keys.Integer("attention.head_count");
  RETURN_IF_ERROR(keys.status());
  if (heads == 0 || hidden == 0 || hidden != embedding->shape[1]) {
    return absl::InvalidArgumentError(absl::StrCat(file.path(), ": embedding_length ", hidden,
                                                   " and attention.head_count ", heads,
                                                   " do not fit token_embd.weight"));
  }
  json config = {{"hidden_act", "silu"},
                 {"vocab_size", embedding->shape[0]},
                 {"hidden_size", hidden},
                 {"num_attention_heads", heads},
                 {"num_hidden_layers", keys.Integer("block_count")},
                 {"intermediate_size", keys.Integer("feed_forward_length")},
                 {"num_key_value_heads", keys.Integer("attention.head_count_kv", heads)},
                 {"max_position_embeddings", keys.Integer("context_length")},
                 {"rms_norm_eps", keys.Number("attention.layer_norm_rms_epsilon")},
                 {"tie_word_embeddings", !HasTensor(file, "output.weight")}};
  // Some writers have no key for it, and some say only how far rotation reaches.
  const bool rotates_all = architecture == "llama";
  const int64_t head_dim = keys.Integer(
      "attention.key_length", rotates_all ? keys.Integer("rope.dimension_count", hidden / heads) : hidden / heads);
  config["head_dim"] = head_dim;
  const int64_t rotary_dim = keys.Integer("rope.dimension_count", head_dim);
  RETURN_IF_ERROR(keys.status());
  if (rotary_dim != head_dim && architecture != "deepseek2") {
    config["partial_rotary_factor"] = static_cast<double>(rotary_dim) / static_cast<double>(head_dim);
  }
  RETURN_IF_ERROR(ReadRope(file, keys, rotary_dim, config));
  RETURN_IF_ERROR(SetFamily(file, keys, architecture, config));
  RETURN_IF_ERROR(SetTokenIds(file, config));
  return config;
}

absl::StatusOr<json> GenerationConfigFromGguf(const File& file) {
  json config = json::object();
  RETURN_IF_ERROR(SetTokenIds(file, config));
  for (auto it = config.begin(); it != config.end();) it = it->is_null() ? config.erase(it) : std::next(it);
  return config;
}

}  // namespace retort::gguf
