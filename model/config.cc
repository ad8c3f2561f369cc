#include "model/config.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/json.h"
#include "common/status.h"

namespace retort {
namespace {

using nlohmann::json;

// No product of two of these overflows, and no tensor shape made of them.
constexpr int64_t kMaxDimension = int64_t{1} << 24;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = int64_t{1} << 16;
constexpr int64_t kMaxPositions = int64_t{1} << 30;

// Reads one JSON object, null counting as absent; the first problem is kept and later reads return their fallback.
class Reader {
 public:
  Reader(const json& object, std::string where) : object_(object), where_(std::move(where)) {}

  const json* Find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  int64_t Integer(const char* key, std::optional<int64_t> fallback, int64_t lowest, int64_t highest) {
    const json* value = Find(key);
    if (value == nullptr) {
      if (!fallback) Fail(key, "is missing");
      return fallback.value_or(lowest);
    }
    // Unsigned values above INT64_MAX would wrap.
    if (!value->is_number_integer() || (value->is_number_unsigned() && value->get<uint64_t>() > uint64_t{INT64_MAX})) {
      Fail(key, absl::StrCat("is ", Shown(*value), ", not a whole number in range"));
      return lowest;
    }
    const int64_t number = value->get<int64_t>();
    if (number < lowest || number > highest) {
      Fail(key, absl::StrCat("is ", number, "; it must lie in ", lowest, "..", highest));
      return lowest;
    }
    return number;
  }

  // Finite and above zero.
  double Positive(const char* key, double fallback) {
    const json* value = Find(key);
    if (value == nullptr) return fallback;
    const double number = value->is_number() ? value->get<double>() : std::nan("");
    if (!std::isfinite(number) || number <= 0.0) {
      Fail(key, absl::StrCat("is ", Shown(*value), ", not a number above zero"));
      return fallback;
    }
    return number;
  }

  bool Boolean(const char* key, bool fallback) {
    const json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) {
      Fail(key, absl::StrCat("is ", Shown(*value), ", not true or false"));
      return fallback;
    }
    return value->get<bool>();
  }

  std::string String(const char* key, const std::string& fallback) {
    const json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_string()) {
      Fail(key, absl::StrCat("is ", Shown(*value), ", not a string"));
      return fallback;
    }
    return value->get<std::string>();
  }

  // A token id, or a list of them.
  std::vector<int32_t> TokenIds(const char* key, int64_t vocab_size) {
    std::vector<int32_t> ids;
    const json* value = Find(key);
    if (value == nullptr) return ids;
    const json list = value->is_array() ? *value : json::array({*value});
    for (const json& id : list) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= vocab_size) {
        Fail(key, absl::StrCat("holds ", Shown(id), ", which is no token id below vocab_size ", vocab_size));
        return {};
      }
      ids.push_back(id.get<int32_t>());
    }
    return ids;
  }

  // Only `allowed` (or nothing at all) is supported.
  void Only(const char* key, const json& allowed) {
    const json* value = Find(key);
    if (value != nullptr && *value != allowed) Unsupported(key, *value);
  }

  void Unsupported(const char* key, const json& value) {
    if (status_.ok()) {
      status_ = absl::UnimplementedError(absl::StrCat(where_, key, ": ", Shown(value), " is not supported"));
    }
  }

  void Fail(const char* key, absl::string_view why) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(where_, key, " ", why));
  }

  const absl::Status& status() const { return status_; }

 private:
  static std::string Shown(const json& value) {
    std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
    if (text.size() > 100) text = absl::StrCat(text.substr(0, 100), "...");
    return text;
  }

  const json& object_;
  const std::string where_;
  absl::Status status_;
};

absl::StatusOr<json> ReadObject(const std::string& path) {
  ASSIGN_OR_RETURN(json object, ReadJsonFile(path));
  if (!object.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  return object;
}

absl::Status ReadRope(const json& object, const std::string& path, Reader& top, ModelConfig& config) {
  config.rope_theta = top.Positive("rope_theta", 10000.0);
  // rope_parameters is what transformers 5 writes; it holds rope_theta too, and wins.
  const char* key = top.Find("rope_parameters") != nullptr ? "rope_parameters" : "rope_scaling";
  const json* rope = top.Find(key);
  if (rope == nullptr) return absl::OkStatus();
  if (!rope->is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": ", key, " is not an object"));
  Reader reader(*rope, absl::StrCat(path, ": ", key, "."));
  config.rope_theta = reader.Positive("rope_theta", config.rope_theta);
  reader.Only("partial_rotary_factor", 1.0);
  const std::string type = reader.String("rope_type", reader.String("type", "default"));
  if (type == "llama3") {
    Llama3RopeScaling scaling;
    for (const char* needed : {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
      if (reader.Find(needed) == nullptr) reader.Fail(needed, "is missing (rope_type llama3 needs it)");
    }
    scaling.factor = reader.Positive("factor", scaling.factor);
    scaling.low_freq_factor = reader.Positive("low_freq_factor", scaling.low_freq_factor);
    scaling.high_freq_factor = reader.Positive("high_freq_factor", scaling.high_freq_factor);
    scaling.original_max_position_embeddings =
        reader.Integer("original_max_position_embeddings", scaling.original_max_position_embeddings, 1, kMaxPositions);
    if (scaling.high_freq_factor <= scaling.low_freq_factor)
      reader.Fail("high_freq_factor", "must exceed low_freq_factor");
    config.rope_scaling = scaling;
  } else if (type != "default") {
    reader.Unsupported("rope_type", type);
  }
  return reader.status();
}

absl::Status ReadDtype(Reader& top, ModelConfig& config) {
  const char* key = top.Find("dtype") != nullptr ? "dtype" : "torch_dtype";
  const std::string name = top.String(key, "float32");
  if (name == "float32") {
    config.dtype = c10::ScalarType::Float;
  } else if (name == "bfloat16") {
    config.dtype = c10::ScalarType::BFloat16;
  } else if (name == "float16") {
    config.dtype = c10::ScalarType::Half;
  } else {
    top.Unsupported(key, name);
  }
  return top.status();
}

void RefuseWhatChangesTheArithmetic(Reader& top) {
  if (const std::string act = top.String("hidden_act", "silu"); act != "silu" && act != "swish") {
    top.Unsupported("hidden_act", act);
  }
  top.Only("pretraining_tp", 1);
  top.Only("attention_dropout", 0.0);
  top.Only("partial_rotary_factor", 1.0);
  top.Only("rope_interleaved", false);
  for (const char* key : {"quantization_config", "compression_config"}) {
    if (const json* value = top.Find(key); value != nullptr) top.Unsupported(key, *value);
  }
  if (const json* names = top.Find("architectures"); names != nullptr) {
    if (!names->is_array() || std::find(names->begin(), names->end(), json("LlamaForCausalLM")) == names->end()) {
      top.Unsupported("architectures", *names);
    }
  }
}

}  // namespace

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/config.json");
  ASSIGN_OR_RETURN(const json object, ReadObject(path));
  Reader top(object, absl::StrCat(path, ": "));

  ModelConfig config;
  config.model_type = top.String("model_type", "");
  if (config.model_type != "llama") top.Unsupported("model_type", config.model_type);
  RETURN_IF_ERROR(top.status());

  config.vocab_size = top.Integer("vocab_size", {}, 1, kMaxDimension);
  config.hidden_size = top.Integer("hidden_size", {}, 1, kMaxDimension);
  config.intermediate_size = top.Integer("intermediate_size", {}, 1, kMaxDimension);
  config.num_hidden_layers = top.Integer("num_hidden_layers", {}, 1, kMaxLayers);
  config.num_attention_heads = top.Integer("num_attention_heads", {}, 1, kMaxHeads);
  config.num_key_value_heads = top.Integer("num_key_value_heads", config.num_attention_heads, 1, kMaxHeads);
  RETURN_IF_ERROR(top.status());
  if (top.Find("head_dim") == nullptr && config.hidden_size % config.num_attention_heads != 0) {
    top.Fail("hidden_size", absl::StrCat("is ", config.hidden_size, ", not a multiple of num_attention_heads ",
                                         config.num_attention_heads, ", and head_dim is absent"));
  }
  config.head_dim = top.Integer("head_dim", config.hidden_size / config.num_attention_heads, 2, kMaxHeads);
  if (config.head_dim % 2 != 0) top.Fail("head_dim", absl::StrCat("is ", config.head_dim, "; it must be even"));
  if (config.num_attention_heads % config.num_key_value_heads != 0) {
    top.Fail("num_key_value_heads", absl::StrCat("is ", config.num_key_value_heads, ", which does not divide ",
                                                 "num_attention_heads ", config.num_attention_heads));
  }
  config.max_position_embeddings = top.Integer("max_position_embeddings", 2048, 1, kMaxPositions);
  config.rms_norm_eps = top.Positive("rms_norm_eps", 1e-6);
  config.tie_word_embeddings = top.Boolean("tie_word_embeddings", false);
  config.attention_bias = top.Boolean("attention_bias", false);
  config.mlp_bias = top.Boolean("mlp_bias", false);
  RefuseWhatChangesTheArithmetic(top);
  RETURN_IF_ERROR(ReadRope(object, path, top, config));
  RETURN_IF_ERROR(ReadDtype(top, config));

  config.eos_token_ids = top.TokenIds("eos_token_id", config.vocab_size);
  if (const auto ids = top.TokenIds("bos_token_id", config.vocab_size); !ids.empty()) config.bos_token_id = ids[0];
  // -1 is what some folders write for "none".
  if (const json* pad = top.Find("pad_token_id"); pad != nullptr && *pad != -1) {
    if (const auto ids = top.TokenIds("pad_token_id", config.vocab_size); !ids.empty()) config.pad_token_id = ids[0];
  }
  RETURN_IF_ERROR(top.status());

  const std::string generation_path = absl::StrCat(folder, "/generation_config.json");
  if (std::error_code error; std::filesystem::exists(generation_path, error)) {
    ASSIGN_OR_RETURN(const json generation, ReadObject(generation_path));
    Reader reader(generation, absl::StrCat(generation_path, ": "));
    if (auto ids = reader.TokenIds("eos_token_id", config.vocab_size); !ids.empty()) {
      config.eos_token_ids = std::move(ids);
    }
    RETURN_IF_ERROR(reader.status());
  }
  return config;
}

}  // namespace retort
