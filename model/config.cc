#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/json.h"
#include "common/status.h"
#include "model/architecture/family.h"

namespace retort {
namespace {

using nlohmann::json;

absl::StatusOr<json> ReadObject(const std::string& path) {
  ASSIGN_OR_RETURN(json object, ReadJsonFile(path));
  if (!object.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  return object;
}

void ReadDtype(ConfigReader& top, ModelConfig& config) {
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
}

// bitsandbytes says by each tensor how it is stored; here it must only be one of the two ways that there are. Old
// configs do without quant_method.
bool IsBitsAndBytes(const json& object) {
  if (!object.is_object()) return false;
  const auto is_true = [&](const char* key) { return object.value(key, json()) == true; };
  const json method = object.value("quant_method", json());
  return (method.is_null() || method == "bitsandbytes") && is_true("load_in_4bit") != is_true("load_in_8bit");
}

// DeepSeek's own, float8_e4m3 with a scale for each 128 x 128 block, and bitsandbytes.
void ReadQuantization(ConfigReader& top, ModelConfig& config) {
  if (const json* other = top.Find("compression_config"); other != nullptr) {
    top.Unsupported("compression_config", *other);
  }
  const json* object = top.Find("quantization_config");
  if (object == nullptr) return;
  if (object->is_object() && object->value("quant_method", json()) == "fp8" &&
      object->value("weight_block_size", json()) == json({128, 128})) {
    config.block_fp8 = true;
    return;
  }
  if (IsBitsAndBytes(*object)) {
    config.bitsandbytes = true;
    return;
  }
  top.Unsupported("quantization_config", *object);
}

const Family* ReadFamily(ConfigReader& top, ModelConfig& config) {
  config.model_type = top.String("model_type", "");
  const Family* family = FindFamily(config.model_type);
  if (family == nullptr) {
    std::vector<std::string> known;
    for (const Family& each : Families()) known.push_back(each.model_type);
    top.Unsupported("model_type", absl::StrCat(config.model_type, " (there are ", absl::StrJoin(known, ", "), ")"));
    return nullptr;
  }
  if (const json* names = top.Find("architectures"); names != nullptr) {
    if (!names->is_array() || std::find(names->begin(), names->end(), json(family->architecture)) == names->end()) {
      top.Unsupported("architectures", *names);
    }
  }
  return family;
}

void ReadTokenIds(ConfigReader& top, ModelConfig& config) {
  config.eos_token_ids = top.TokenIds("eos_token_id", config.vocab_size);
  if (const auto ids = top.TokenIds("bos_token_id", config.vocab_size); !ids.empty()) config.bos_token_id = ids[0];
  // -1 is what some folders write for "none".
  if (const json* pad = top.Find("pad_token_id"); pad != nullptr && *pad != -1) {
    if (const auto ids = top.TokenIds("pad_token_id", config.vocab_size); !ids.empty()) config.pad_token_id = ids[0];
  }
}

}  // namespace

int64_t ModelConfig::context_length() const {
  const auto scaled = [&](int64_t length) { return static_cast<int64_t>(rope.factor * static_cast<double>(length)); };
  switch (rope.type) {
    case RopeType::kLinear:
      return std::max(max_position_embeddings, scaled(max_position_embeddings));
    case RopeType::kYarn:
    case RopeType::kLlama3:
      return std::max(max_position_embeddings, scaled(rope.original_max_position_embeddings));
    default:
      return max_position_embeddings;
  }
}

void FillDerived(ModelConfig& config) {
  if (config.attention_scale == 0.0) config.attention_scale = 1.0 / std::sqrt(static_cast<double>(config.head_dim));
  if (config.rope.dim == 0) config.rope.dim = config.head_dim;
}

absl::StatusOr<ModelConfig> ParseModelConfig(const json& object, const json& generation, const std::string& folder) {
  ConfigReader top(object, absl::StrCat(folder, "/config.json: "));
  ModelConfig config;
  const Family* family = ReadFamily(top, config);
  RETURN_IF_ERROR(top.status());

  config.vocab_size = top.Integer("vocab_size", {}, 1, kMaxDimension);
  config.hidden_size = top.Integer("hidden_size", {}, 1, kMaxDimension);
  config.intermediate_size = top.Integer("intermediate_size", {}, 1, kMaxDimension);
  config.num_hidden_layers = top.Integer("num_hidden_layers", {}, 1, kMaxLayers);
  config.max_position_embeddings =
      top.Integer("max_position_embeddings", family->max_position_embeddings, 1, kMaxPositions);
  config.rms_norm_eps = top.Positive("rms_norm_eps", family->rms_norm_eps);
  config.tie_word_embeddings = top.Boolean("tie_word_embeddings", false);
  if (const std::string act = top.String("hidden_act", "silu"); act != "silu" && act != "swish") {
    top.Unsupported("hidden_act", act);
  }
  // Dropout of activations is in effect in training alone, where it is refused.
  for (const char* key : {"attention_dropout", "resid_pdrop", "embd_pdrop"}) {
    if (top.Number(key, 0.0) != 0.0) config.activation_dropout = key;
  }
  top.Only("pretraining_tp", 1);
  RETURN_IF_ERROR(top.status());
  family->read(top, config);
  RETURN_IF_ERROR(top.status());
  FillDerived(config);
  ReadDtype(top, config);
  ReadQuantization(top, config);
  ReadTokenIds(top, config);
  RETURN_IF_ERROR(top.status());
  if (!generation.is_null()) {
    ConfigReader reader(generation, absl::StrCat(folder, "/generation_config.json: "));
    // Where the file is there it alone decides, also for "none".
    config.eos_token_ids = reader.TokenIds("eos_token_id", config.vocab_size);
    RETURN_IF_ERROR(reader.status());
  }
  return config;
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& folder) {
  ASSIGN_OR_RETURN(const json object, ReadObject(absl::StrCat(folder, "/config.json")));
  json generation;
  const std::string generation_path = absl::StrCat(folder, "/generation_config.json");
  if (std::error_code error; std::filesystem::exists(generation_path, error)) {
    ASSIGN_OR_RETURN(generation, ReadObject(generation_path));
  }
  return ParseModelConfig(object, generation, folder);
}

}  // namespace retort
