#include "model/architecture/family.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace retort {
namespace {

using nlohmann::json;

constexpr Family kFamilies[] = {
    {"llama", "LlamaForCausalLM", 1e-6, 2048, ReadLlama},
    {"mistral", "MistralForCausalLM", 1e-6, 131072, ReadMistral},
    {"qwen2", "Qwen2ForCausalLM", 1e-6, 32768, ReadQwen2},
    {"qwen3", "Qwen3ForCausalLM", 1e-6, 32768, ReadQwen3},
    {"phi3", "Phi3ForCausalLM", 1e-5, 4096, ReadPhi3},
    {"deepseek_v2", "DeepseekV2ForCausalLM", 1e-6, 2048, ReadDeepseekV2},
    {"deepseek_v3", "DeepseekV3ForCausalLM", 1e-6, 4096, ReadDeepseekV3},
};

// Of YaRN (arXiv:2309.00071, section 3.4), with transformers' coefficient.
double MagnitudeScale(double factor, double coefficient) {
  return factor <= 1.0 ? 1.0 : 0.1 * coefficient * std::log(factor) + 1.0;
}

void ReadYarn(ConfigReader& rope, const ModelConfig& config, RopeConfig& out) {
  const auto original = static_cast<double>(out.original_max_position_embeddings);
  out.factor = rope.Positive("factor", static_cast<double>(config.max_position_embeddings) / original);
  // Zero counts as absent.
  const auto or_default = [&](const char* key, double fallback) {
    const double value = rope.Number(key, 0.0);
    return value == 0.0 ? fallback : value;
  };
  out.beta_fast = or_default("beta_fast", 32.0);
  out.beta_slow = or_default("beta_slow", 1.0);
  if (out.beta_fast <= 0.0) rope.Fail("beta_fast", "must be above zero");
  if (out.beta_slow <= 0.0) rope.Fail("beta_slow", "must be above zero");
  out.truncate = rope.Boolean("truncate", true);
  const double mscale = rope.Number("mscale", 0.0);
  const double mscale_all_dim = rope.Number("mscale_all_dim", 0.0);
  out.attention_factor = mscale != 0.0 && mscale_all_dim != 0.0
                             ? MagnitudeScale(out.factor, mscale) / MagnitudeScale(out.factor, mscale_all_dim)
                             : MagnitudeScale(out.factor, 1.0);
  out.attention_factor = rope.Number("attention_factor", out.attention_factor);
}

void ReadLongrope(ConfigReader& rope, const ModelConfig& config, RopeConfig& out) {
  const auto original = static_cast<double>(out.original_max_position_embeddings);
  out.factor = rope.Positive("factor", static_cast<double>(config.max_position_embeddings) / original);
  out.attention_factor =
      out.factor <= 1.0 || original <= 1.0 ? 1.0 : std::sqrt(1.0 + std::log(out.factor) / std::log(original));
  out.attention_factor = rope.Number("attention_factor", out.attention_factor);
  out.short_factor = rope.Positives("short_factor");
  out.long_factor = rope.Positives("long_factor");
  for (const auto& [key, list] : {std::pair("short_factor", &out.short_factor), {"long_factor", &out.long_factor}}) {
    if (static_cast<int64_t>(list->size()) != out.dim / 2) {
      rope.Fail(key, absl::StrCat("has ", list->size(), " values; there must be ", out.dim / 2,
                                  ", one for each pair of rotated dimensions"));
    }
  }
}

void ReadLlama3(ConfigReader& rope, RopeConfig& out) {
  for (const char* needed : {"factor", "low_freq_factor", "high_freq_factor"}) {
    if (rope.Find(needed) == nullptr) rope.Fail(needed, "is missing (rope_type llama3 needs it)");
  }
  out.factor = rope.Positive("factor", 1.0);
  out.low_freq_factor = rope.Positive("low_freq_factor", 1.0);
  out.high_freq_factor = rope.Positive("high_freq_factor", 4.0);
  if (out.high_freq_factor <= out.low_freq_factor) rope.Fail("high_freq_factor", "must exceed low_freq_factor");
}

void ReadScaling(ConfigReader& rope, ConfigReader& top, const RopeReading& reading, ModelConfig& config) {
  RopeConfig& out = config.rope;
  std::string type = rope.String("rope_type", rope.String("type", "default"));
  if (type == "su" || (type == "yarn" && reading.yarn_means_longrope)) type = "longrope";
  const double partial = rope.Positive("partial_rotary_factor", top.Positive("partial_rotary_factor", 1.0));
  if (partial > 1.0) rope.Fail("partial_rotary_factor", absl::StrCat("is ", partial, "; it must be at most 1"));
  out.dim = reading.head_dim;
  if (reading.partial) {
    out.dim = static_cast<int64_t>(static_cast<double>(reading.head_dim) * partial);
  } else if (partial != 1.0) {
    if (type != "default") return rope.Unsupported("partial_rotary_factor", partial);
    spdlog::warn("config_key_not_used model_type={} key=partial_rotary_factor reason=\"{} rotates whole heads\"",
                 config.model_type, config.model_type);
  }
  if (out.dim < 2 || out.dim % 2 != 0) {
    rope.Fail("partial_rotary_factor",
              absl::StrCat("leaves ", out.dim, " of ", reading.head_dim, " dimensions to rotate; an even number of at ",
                           "least 2 is needed"));
  }
  if (!rope.status().ok()) return;
  const int64_t inner =
      rope.Integer("original_max_position_embeddings", config.max_position_embeddings, 1, kMaxPositions);
  // The one beside the scaling wins.
  out.original_max_position_embeddings = top.Integer(
      "original_max_position_embeddings", reading.original_max_position_embeddings.value_or(inner), 1, kMaxPositions);
  if (type == "linear") {
    out.type = RopeType::kLinear;
    if (rope.Find("factor") == nullptr) rope.Fail("factor", "is missing (rope_type linear needs it)");
    out.factor = rope.Positive("factor", 1.0);
  } else if (type == "llama3") {
    out.type = RopeType::kLlama3;
    ReadLlama3(rope, out);
  } else if (type == "yarn") {
    out.type = RopeType::kYarn;
    ReadYarn(rope, config, out);
  } else if (type == "longrope") {
    out.type = RopeType::kLongrope;
    ReadLongrope(rope, config, out);
  } else if (type != "default") {
    rope.Unsupported("rope_type", type);
  }
}

}  // namespace

absl::Span<const Family> Families() { return kFamilies; }

const Family* FindFamily(absl::string_view model_type) {
  for (const Family& family : kFamilies) {
    if (model_type == family.model_type) return &family;
  }
  return nullptr;
}

void ReadAttention(ConfigReader& reader, const AttentionDefaults& defaults, ModelConfig& config) {
  config.num_attention_heads = reader.Integer("num_attention_heads", {}, 1, kMaxHeads);
  // Null and absent differ: null means as many as heads.
  const int64_t kv_default = reader.IsNull("num_key_value_heads")
                                 ? config.num_attention_heads
                                 : defaults.num_key_value_heads.value_or(config.num_attention_heads);
  config.num_key_value_heads = reader.Integer("num_key_value_heads", kv_default, 1, kMaxHeads);
  if (!reader.status().ok()) return;
  const std::optional<int64_t> head_default = reader.IsNull("head_dim") ? std::nullopt : defaults.head_dim;
  if (reader.Find("head_dim") == nullptr && !head_default && config.hidden_size % config.num_attention_heads != 0) {
    reader.Fail("hidden_size", absl::StrCat("is ", config.hidden_size, ", not a multiple of num_attention_heads ",
                                            config.num_attention_heads, ", and head_dim is absent"));
    return;
  }
  config.head_dim =
      reader.Integer("head_dim", head_default.value_or(config.hidden_size / config.num_attention_heads), 2, kMaxHeads);
  if (config.head_dim % 2 != 0) reader.Fail("head_dim", absl::StrCat("is ", config.head_dim, "; it must be even"));
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    reader.Fail("num_key_value_heads", absl::StrCat("is ", config.num_key_value_heads, ", which does not divide ",
                                                    "num_attention_heads ", config.num_attention_heads));
  }
}

void ReadRope(ConfigReader& reader, const RopeReading& reading, ModelConfig& config) {
  config.rope.theta = reader.Positive("rope_theta", 10000.0);
  // rope_parameters is what transformers 5 writes; it holds rope_theta too. Where both stand, transformers takes the
  // older one unless it is empty.
  const json* old_style = reader.Find("rope_scaling");
  const bool use_old = old_style != nullptr && !(old_style->is_object() && old_style->empty());
  const char* key = use_old ? "rope_scaling" : "rope_parameters";
  static const json kNone = json::object();
  const json* found = reader.Find(key);
  const json& object = found == nullptr ? kNone : *found;
  if (!object.is_object()) {
    reader.Fail(key, "is not an object");
    return;
  }
  for (const char* nested : {"full_attention", "sliding_attention"}) {
    if (object.contains(nested)) {
      reader.Unsupported(key, object);
      return;
    }
  }
  ConfigReader rope(object, absl::StrCat(reader.where(), key, "."));
  config.rope.theta = rope.Positive("rope_theta", config.rope.theta);
  ReadScaling(rope, reader, reading, config);
  reader.Adopt(rope.status());
}

void ReadQwenWindows(ConfigReader& reader, ModelConfig& config) {
  const bool used = reader.Boolean("use_sliding_window", false);
  const int64_t window =
      used && !reader.IsNull("sliding_window") ? reader.Integer("sliding_window", 4096, 1, kMaxPositions) : 0;
  const int64_t first = reader.Integer("max_window_layers", 28, 0, kMaxPositions);
  config.sliding_window.assign(static_cast<size_t>(config.num_hidden_layers), 0);
  const json* types = reader.Find("layer_types");
  if (types == nullptr) {
    for (int64_t i = first; i < config.num_hidden_layers; ++i) config.sliding_window[static_cast<size_t>(i)] = window;
    return;
  }
  if (!types->is_array() || types->size() != config.sliding_window.size()) {
    reader.Fail("layer_types", absl::StrCat("is not a list of ", config.num_hidden_layers, " names, one a layer"));
    return;
  }
  for (size_t i = 0; i < types->size(); ++i) {
    if ((*types)[i] == "full_attention") continue;
    if ((*types)[i] != "sliding_attention") return reader.Unsupported("layer_types", (*types)[i]);
    if (window == 0) return reader.Fail("layer_types", "holds sliding_attention, but no sliding_window is in use");
    config.sliding_window[i] = window;
  }
}

void SetWindow(int64_t window, ModelConfig& config) {
  config.sliding_window.assign(static_cast<size_t>(config.num_hidden_layers), window);
}

}  // namespace retort
