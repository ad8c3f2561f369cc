#include "model/adapter_config.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace retort::internal {
namespace {

using nlohmann::ordered_json;

// Keys that are read here, or that change nothing once the tensors are there. Every other key is refused unless its
// value says "off".
constexpr const char* kHarmlessKeys[] = {"auto_mapping",
                                         "base_model_name_or_path",
                                         "revision",
                                         "inference_mode",
                                         "task_type",
                                         "peft_type",
                                         "peft_version",
                                         "r",
                                         "lora_alpha",
                                         "lora_dropout",
                                         "use_rslora",
                                         "use_dora",
                                         "target_modules",
                                         "target_parameters",
                                         "exclude_modules",
                                         "init_lora_weights",
                                         "layers_to_transform",
                                         "layers_pattern",
                                         "rank_pattern",
                                         "alpha_pattern",
                                         "modules_to_save",
                                         "megatron_core",
                                         "qalora_group_size",
                                         "runtime_config",
                                         "eva_config",
                                         "arrow_config",
                                         "bias",
                                         "ensure_weight_tying"};

bool SaysOff(const ordered_json& value) {
  return value.is_null() || value == false || (value.is_structured() && value.empty()) ||
         (value.is_string() && value.get_ref<const std::string&>().empty());
}

bool IsKnownStart(const ordered_json& value) {
  if (!value.is_string()) return value.is_boolean() || value.is_null();
  // PiSSA by iterations, OLoRA, CorDA and LoftQ change the base weights too, and not in a way that can be found again.
  for (const char* known : {"gaussian", "eva", "orthogonal", "pissa"}) {
    if (value == known) return true;
  }
  return false;
}

absl::Status RefuseUnsupported(const ordered_json& config) {
  for (const auto& [key, value] : config.items()) {
    bool harmless =
        SaysOff(value) || std::find(std::begin(kHarmlessKeys), std::end(kHarmlessKeys), key) != std::end(kHarmlessKeys);
    if (key == "bias") harmless = value == "none" || value == "all" || value == "lora_only";
    if (key == "peft_type") harmless = value == "LORA";
    if (key == "init_lora_weights") harmless = IsKnownStart(value);
    if (harmless) continue;
    std::string shown = value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
    if (shown.size() > 100) shown = absl::StrCat(shown.substr(0, 100), "...");
    return absl::UnimplementedError(absl::StrCat(key, ": ", shown, " is not supported"));
  }
  return absl::OkStatus();
}

absl::Status Wrong(absl::string_view key, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(key, " ", what));
}

absl::StatusOr<bool> Flag(const ordered_json& object, const char* key) {
  const ordered_json value = object.value(key, ordered_json(false));
  if (!value.is_boolean() && !value.is_null()) return Wrong(key, "is not true or false");
  return value == true;
}

// A list of strings, or a single string where `single` takes it; null: empty.
absl::StatusOr<std::vector<std::string>> Strings(const ordered_json& object, const char* key, std::string* single) {
  const ordered_json value = object.value(key, ordered_json());
  std::vector<std::string> strings;
  if (value.is_null()) return strings;
  if (value.is_string() && single != nullptr) {
    *single = value.get<std::string>();
    return strings;
  }
  if (!value.is_array()) {
    return Wrong(key, single != nullptr ? "is neither a list nor a string" : "is not a list of strings");
  }
  for (const ordered_json& item : value) {
    if (!item.is_string()) return Wrong(key, "holds something that is no string");
    strings.push_back(item.get<std::string>());
  }
  return strings;
}

absl::Status ReadLayers(const ordered_json& object, LoraConfig& config) {
  const ordered_json value = object.value("layers_to_transform", ordered_json());
  if (value.is_null()) return absl::OkStatus();
  for (const ordered_json& item : value.is_array() ? value : ordered_json::array({value})) {
    if (!item.is_number_integer()) return Wrong("layers_to_transform", "is not a list of whole numbers");
    config.layers_to_transform.push_back(item.get<int64_t>());
  }
  return absl::OkStatus();
}

absl::Status ReadPatterns(const ordered_json& object, LoraConfig& config) {
  const ordered_json ranks = object.value("rank_pattern", ordered_json());
  const ordered_json alphas = object.value("alpha_pattern", ordered_json());
  if (!ranks.is_null() && !ranks.is_object()) return Wrong("rank_pattern", "is not a map");
  if (!alphas.is_null() && !alphas.is_object()) return Wrong("alpha_pattern", "is not a map");
  for (const auto& [pattern, rank] : ranks.items()) {
    if (!rank.is_number_integer()) return Wrong("rank_pattern", "holds something that is no whole number");
    config.rank_pattern.emplace_back(pattern, rank.get<int64_t>());
  }
  for (const auto& [pattern, alpha] : alphas.items()) {
    if (!alpha.is_number()) return Wrong("alpha_pattern", "holds something that is no number");
    config.alpha_pattern.emplace_back(pattern, alpha.get<double>());
  }
  return absl::OkStatus();
}

absl::Status ReadNumbers(const ordered_json& object, LoraConfig& config) {
  const ordered_json r = object.value("r", ordered_json(8));
  if (!r.is_number_integer() || r < 1 || r > kMaxLoraRank) {
    return Wrong("r", absl::StrCat("is ", r.dump(), "; it must lie in 1..", kMaxLoraRank));
  }
  config.r = r.get<int64_t>();
  const ordered_json alpha = object.value("lora_alpha", ordered_json(8));
  if (!alpha.is_number() || !std::isfinite(alpha.get<double>())) {
    return Wrong("lora_alpha", absl::StrCat("is ", alpha.dump(), ", not a number"));
  }
  config.lora_alpha = alpha.get<double>();
  const ordered_json dropout = object.value("lora_dropout", ordered_json(0.0));
  if (!dropout.is_number() || !(dropout.get<double>() >= 0.0 && dropout.get<double>() < 1.0)) {
    return Wrong("lora_dropout", absl::StrCat("is ", dropout.dump(), "; it must lie in [0, 1)"));
  }
  config.lora_dropout = dropout.get<double>();
  return absl::OkStatus();
}

// PEFT writes whole numbers as integers.
ordered_json Number(double value) {
  const bool whole = value == std::floor(value) && std::abs(value) < 1e15;
  return whole ? ordered_json(static_cast<int64_t>(value)) : ordered_json(value);
}

ordered_json OrNull(const std::vector<std::string>& list) { return list.empty() ? ordered_json() : ordered_json(list); }

}  // namespace

absl::StatusOr<AdapterConfig> ParseAdapterConfig(const ordered_json& object) {
  if (!object.is_object()) return absl::InvalidArgumentError("not a JSON object");
  RETURN_IF_ERROR(RefuseUnsupported(object));
  AdapterConfig parsed;
  LoraConfig& config = parsed.config;
  RETURN_IF_ERROR(ReadNumbers(object, config));
  ASSIGN_OR_RETURN(config.use_rslora, Flag(object, "use_rslora"));
  ASSIGN_OR_RETURN(config.use_dora, Flag(object, "use_dora"));
  ASSIGN_OR_RETURN(config.ensure_weight_tying, Flag(object, "ensure_weight_tying"));
  ASSIGN_OR_RETURN(config.target_modules, Strings(object, "target_modules", &config.target_pattern));
  ASSIGN_OR_RETURN(config.exclude_modules, Strings(object, "exclude_modules", &config.exclude_pattern));
  ASSIGN_OR_RETURN(config.target_parameters, Strings(object, "target_parameters", nullptr));
  ASSIGN_OR_RETURN(config.modules_to_save, Strings(object, "modules_to_save", nullptr));
  std::string layers_pattern;
  ASSIGN_OR_RETURN(config.layers_pattern, Strings(object, "layers_pattern", &layers_pattern));
  if (!layers_pattern.empty()) config.layers_pattern = {layers_pattern};
  RETURN_IF_ERROR(ReadLayers(object, config));
  RETURN_IF_ERROR(ReadPatterns(object, config));
  const ordered_json bias = object.value("bias", ordered_json("none"));
  config.bias = bias == "all" ? LoraBias::kAll : bias == "lora_only" ? LoraBias::kLoraOnly : LoraBias::kNone;
  const ordered_json init = object.value("init_lora_weights", ordered_json(true));
  config.init_lora_weights = init.is_string() ? init.get<std::string>() : init == false ? "false" : "true";
  const ordered_json base = object.value("base_model_name_or_path", ordered_json());
  if (base.is_string()) config.base_model_name_or_path = base.get<std::string>();
  const bool unsaid = object.value("target_modules", ordered_json()).is_null() && config.target_parameters.empty();
  parsed.targets_in_tensors = unsaid || !config.target_pattern.empty();
  if (unsaid) config.target_pattern = "all-linear";
  if (absl::AsciiStrToLower(config.target_pattern) == "all-linear") {
    config.target_modules = {"all-linear"};
    config.target_pattern.clear();
  }
  return parsed;
}

ordered_json AdapterConfigToJson(const LoraConfig& config) {
  std::vector<std::string> targets = config.target_modules;
  std::sort(targets.begin(), targets.end());
  ordered_json ranks = ordered_json::object();
  ordered_json alphas = ordered_json::object();
  for (const auto& [pattern, rank] : config.rank_pattern) ranks[pattern] = rank;
  for (const auto& [pattern, alpha] : config.alpha_pattern) alphas[pattern] = Number(alpha);
  ordered_json init = config.init_lora_weights;
  if (init == "true" || init == "false") init = init == "true";
  const char* bias = config.bias == LoraBias::kAll ? "all" : config.bias == LoraBias::kLoraOnly ? "lora_only" : "none";
  return {{"alpha_pattern", alphas},
          {"auto_mapping", nullptr},
          {"base_model_name_or_path",
           config.base_model_name_or_path.empty() ? ordered_json() : ordered_json(config.base_model_name_or_path)},
          {"bias", bias},
          {"ensure_weight_tying", config.ensure_weight_tying},
          {"fan_in_fan_out", false},
          {"inference_mode", true},
          {"init_lora_weights", init},
          {"layers_pattern", nullptr},
          {"layers_to_transform", nullptr},
          {"lora_alpha", Number(config.lora_alpha)},
          {"lora_dropout", config.lora_dropout},
          {"modules_to_save", OrNull(config.modules_to_save)},
          {"peft_type", "LORA"},
          {"r", config.r},
          {"rank_pattern", ranks},
          {"revision", nullptr},
          {"target_modules", targets},
          {"target_parameters", OrNull(config.target_parameters)},
          {"task_type", "CAUSAL_LM"},
          {"use_dora", config.use_dora},
          {"use_rslora", config.use_rslora}};
}

}  // namespace retort::internal
