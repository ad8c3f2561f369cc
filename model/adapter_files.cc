#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/file.h"
#include "common/json.h"
#include "common/status.h"
#include "model/lora.h"
#include "model/safetensors.h"
#include "model/torch_status.h"

namespace retort {
namespace {

using nlohmann::json;

constexpr const char* kConfigFile = "adapter_config.json";
constexpr const char* kTensorFile = "adapter_model.safetensors";
constexpr absl::string_view kPrefix = "base_model.model.";
constexpr absl::string_view kSuffixA = ".lora_A.weight";
constexpr absl::string_view kSuffixB = ".lora_B.weight";

// Keys of adapter_config.json that are read here, or that change nothing once the tensors are there. Every other key is
// refused unless its value says "off".
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
                                         "target_modules",
                                         "exclude_modules",
                                         "init_lora_weights",
                                         "layers_to_transform",
                                         "layers_pattern",
                                         "megatron_core",
                                         "qalora_group_size",
                                         "runtime_config",
                                         "eva_config",
                                         "arrow_config",
                                         "bias",
                                         "ensure_weight_tying"};

bool SaysOff(const json& value) {
  return value.is_null() || value == false || (value.is_structured() && value.empty()) ||
         (value.is_string() && value.get_ref<const std::string&>().empty());
}

absl::Status RefuseUnsupported(const json& config) {
  for (const auto& [key, value] : config.items()) {
    bool harmless =
        SaysOff(value) || std::find(std::begin(kHarmlessKeys), std::end(kHarmlessKeys), key) != std::end(kHarmlessKeys);
    if (key == "bias") harmless = value == "none";
    if (key == "peft_type") harmless = value == "LORA";
    // PiSSA, OLoRA, CorDA and LoftQ change the base weights too.
    if (key == "init_lora_weights")
      harmless = !value.is_string() || value == "gaussian" || value == "eva" || value == "orthogonal";
    if (harmless) continue;
    std::string shown = value.dump(-1, ' ', false, json::error_handler_t::replace);
    if (shown.size() > 100) shown = absl::StrCat(shown.substr(0, 100), "...");
    return absl::UnimplementedError(absl::StrCat(key, ": ", shown, " is not supported"));
  }
  return absl::OkStatus();
}

absl::StatusOr<LoraConfig> ParseConfig(const json& object) {
  if (!object.is_object()) return absl::InvalidArgumentError("not a JSON object");
  RETURN_IF_ERROR(RefuseUnsupported(object));
  LoraConfig config;
  const json r = object.value("r", json(8));
  if (!r.is_number_integer() || r < 1 || r > kMaxLoraRank) {
    return absl::InvalidArgumentError(absl::StrCat("r is ", r.dump(), "; it must lie in 1..", kMaxLoraRank));
  }
  config.r = r.get<int64_t>();
  const json alpha = object.value("lora_alpha", json(8));
  if (!alpha.is_number() || !std::isfinite(alpha.get<double>())) {
    return absl::InvalidArgumentError(absl::StrCat("lora_alpha is ", alpha.dump(), ", not a number"));
  }
  config.lora_alpha = alpha.get<double>();
  const json dropout = object.value("lora_dropout", json(0.0));
  if (!dropout.is_number() || !(dropout.get<double>() >= 0.0 && dropout.get<double>() < 1.0)) {
    return absl::InvalidArgumentError(absl::StrCat("lora_dropout is ", dropout.dump(), "; it must lie in [0, 1)"));
  }
  config.lora_dropout = dropout.get<double>();
  const json rslora = object.value("use_rslora", json(false));
  if (!rslora.is_boolean() && !rslora.is_null()) return absl::InvalidArgumentError("use_rslora is not true or false");
  // alpha / sqrt(r) is (alpha * sqrt(r)) / r.
  if (rslora == true) config.lora_alpha *= std::sqrt(static_cast<double>(config.r));
  const json base = object.value("base_model_name_or_path", json());
  if (base.is_string()) config.base_model_name_or_path = base.get<std::string>();
  return config;
}

// Which list names the modules again: the ends of their names where these select just the modules, else the whole
// names.
std::vector<std::string> TargetsOf(const std::map<std::string, LoraPair>& modules, const ModelConfig& model) {
  std::set<std::string> ends;
  for (const auto& [name, pair] : modules) ends.insert(name.substr(name.rfind('.') + 1));
  size_t selected = 0;
  for (const LinearModule& module : LinearModules(model))
    selected += ends.contains(module.name.substr(module.name.rfind('.') + 1));
  std::vector<std::string> names(ends.begin(), ends.end());
  if (selected == modules.size()) return names;
  names.clear();
  for (const auto& [name, pair] : modules) names.push_back(name);
  return names;
}

// The tensors decide which modules there are; a list in the config may not contradict them. A string ("all-linear" or a
// pattern) is not looked into.
absl::Status CheckTargets(const json& targets, const std::map<std::string, LoraPair>& modules) {
  if (targets.is_null() || targets.is_string()) return absl::OkStatus();
  if (!targets.is_array()) return absl::InvalidArgumentError("target_modules is neither a list nor a string");
  std::set<std::string> unmatched_modules;
  for (const auto& [name, pair] : modules) unmatched_modules.insert(name);
  for (const json& target : targets) {
    if (!target.is_string()) return absl::InvalidArgumentError("target_modules holds something that is no string");
    const std::string end = target.get<std::string>();
    bool used = false;
    for (const auto& [name, pair] : modules) {
      if (name != end && !absl::EndsWith(name, absl::StrCat(".", end))) continue;
      used = true;
      unmatched_modules.erase(name);
    }
    if (!used) {
      return absl::InvalidArgumentError(
          absl::StrCat("target_modules names \"", end, "\", but ", kTensorFile, " has no such module"));
    }
  }
  if (!unmatched_modules.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(kTensorFile, " holds module \"", *unmatched_modules.begin(),
                                                   "\", which target_modules does not name"));
  }
  return absl::OkStatus();
}

absl::Status ReadTensors(const std::string& path, const LoraConfig& config, const ModelConfig& model,
                         std::map<std::string, LoraPair>& modules) {
  ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  std::map<std::string, LinearModule> linear;
  for (LinearModule& module : LinearModules(model)) linear.emplace(module.name, module);
  for (const std::string& tensor_name : file.names()) {
    absl::string_view name = tensor_name;
    const bool has_prefix = absl::ConsumePrefix(&name, kPrefix);
    const bool is_a = absl::ConsumeSuffix(&name, kSuffixA);
    const bool is_b = !is_a && absl::ConsumeSuffix(&name, kSuffixB);
    if (!has_prefix || (!is_a && !is_b)) {
      return absl::UnimplementedError(absl::StrCat(path, ": tensor \"", tensor_name, "\" is not supported; only ",
                                                   kPrefix, "<module>", kSuffixA, " and ", kSuffixB, " are"));
    }
    const auto module = linear.find(std::string(name));
    if (module == linear.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor \"", tensor_name, "\": the model has no linear module \"", name, "\""));
    }
    ASSIGN_OR_RETURN(const at::Tensor stored, file.Get(tensor_name));
    const std::vector<int64_t> shape = is_a ? std::vector<int64_t>{config.r, module->second.in_features}
                                            : std::vector<int64_t>{module->second.out_features, config.r};
    if (stored.sizes() != at::IntArrayRef(shape)) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor \"", tensor_name, "\" has shape [",
                                                     absl::StrJoin(stored.sizes(), ", "), "], model and r ask for [",
                                                     absl::StrJoin(shape, ", "), "]"));
    }
    if (stored.scalar_type() != at::kFloat && stored.scalar_type() != at::kBFloat16 &&
        stored.scalar_type() != at::kHalf) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor \"", tensor_name, "\" is stored as ",
                                                     c10::toString(stored.scalar_type()),
                                                     "; only float32, bfloat16 and float16 are supported"));
    }
    LoraPair& pair = modules[module->first];
    RETURN_IF_ERROR(CatchTorchErrors(absl::StrCat(path, ": load ", tensor_name), [&]() -> absl::Status {
      (is_a ? pair.a : pair.b) = stored.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
      return absl::OkStatus();
    }));
  }
  if (modules.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": holds no tensors"));
  for (const auto& [name, pair] : modules) {
    if (pair.a.defined() && pair.b.defined()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": module \"", name, "\" lacks ", pair.a.defined() ? "lora_B" : "lora_A"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LoraAdapter> LoadAdapter(const std::string& folder, const ModelConfig& model) {
  const std::string config_path = absl::StrCat(folder, "/", kConfigFile);
  const std::string tensor_path = absl::StrCat(folder, "/", kTensorFile);
  std::error_code error;
  if (!std::filesystem::exists(config_path, error)) {
    return absl::NotFoundError(absl::StrCat("no adapter in ", folder, ": ", kConfigFile, " is missing"));
  }
  if (!std::filesystem::exists(tensor_path, error)) {
    return absl::NotFoundError(
        absl::StrCat("no adapter in ", folder, ": ", kTensorFile,
                     " is missing (adapter_model.bin is not read: it is a pickle; save it as safetensors)"));
  }
  ASSIGN_OR_RETURN(const json object, ReadJsonFile(config_path));
  auto config = ParseConfig(object);
  if (!config.ok()) return WithContext(config.status(), config_path);
  LoraAdapter adapter;
  adapter.config = *std::move(config);
  RETURN_IF_ERROR(ReadTensors(tensor_path, adapter.config, model, adapter.modules));
  if (const auto status = CheckTargets(object.value("target_modules", json()), adapter.modules); !status.ok()) {
    return WithContext(status, config_path);
  }
  adapter.config.target_modules = TargetsOf(adapter.modules, model);
  return adapter;
}

absl::Status SaveAdapter(const LoraAdapter& adapter, const std::string& folder) {
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, pair] : adapter.modules) {
    tensors[absl::StrCat(kPrefix, name, kSuffixA)] = pair.a;
    tensors[absl::StrCat(kPrefix, name, kSuffixB)] = pair.b;
  }
  RETURN_IF_ERROR(WriteSafetensors(absl::StrCat(folder, "/", kTensorFile), tensors));

  const LoraConfig& config = adapter.config;
  std::vector<std::string> targets = config.target_modules;
  std::sort(targets.begin(), targets.end());
  // PEFT writes whole alphas as integers.
  const bool whole = config.lora_alpha == std::floor(config.lora_alpha) && std::abs(config.lora_alpha) < 1e15;
  const json object = {{"alpha_pattern", json::object()},
                       {"auto_mapping", nullptr},
                       {"base_model_name_or_path",
                        config.base_model_name_or_path.empty() ? json() : json(config.base_model_name_or_path)},
                       {"bias", "none"},
                       {"fan_in_fan_out", false},
                       {"inference_mode", true},
                       {"init_lora_weights", true},
                       {"layers_pattern", nullptr},
                       {"layers_to_transform", nullptr},
                       {"lora_alpha", whole ? json(static_cast<int64_t>(config.lora_alpha)) : json(config.lora_alpha)},
                       {"lora_dropout", config.lora_dropout},
                       {"modules_to_save", nullptr},
                       {"peft_type", "LORA"},
                       {"r", config.r},
                       {"rank_pattern", json::object()},
                       {"revision", nullptr},
                       {"target_modules", targets},
                       {"task_type", "CAUSAL_LM"},
                       {"use_dora", false},
                       {"use_rslora", false}};
  return WriteFileAtomically(absl::StrCat(folder, "/", kConfigFile), object.dump(2) + "\n");
}

}  // namespace retort
