// Which modules an adapter's config chooses.
#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/status.h"
#include "model/lora.h"
#include "model/module_pattern.h"

namespace retort {
namespace {

constexpr absl::string_view kLayers = "model.layers.";

// A name means a module's whole name or the end of it after a dot.
bool Names(const std::string& target, const std::string& module) {
  return module == target || absl::EndsWith(module, "." + target);
}

std::string Leaf(const std::string& name) { return name.substr(name.rfind('.') + 1); }

bool IsAllLinear(const LoraConfig& config) {
  return config.target_pattern.empty() && config.target_modules.size() == 1 &&
         absl::AsciiStrToLower(config.target_modules[0]) == "all-linear";
}

bool IsEmbedding(absl::string_view module) { return module == kEmbeddingModule || module == kHeadModule; }

// The pattern that a key of rank_pattern or alpha_pattern stands for.
std::string AtTheEnd(const std::string& key) { return absl::StrCat("(.*\\.)?(", key, ")"); }

// The pattern of what lies within a module that is trained whole.
std::string Within(const std::string& module) { return absl::StrCat("(.*\\.)?(?:", module, ")(\\..*)?"); }

absl::Status CheckPatterns(const LoraConfig& config) {
  const auto check = [](const char* key, const std::string& pattern) -> absl::Status {
    return WithContext(ModulePattern::Compile(pattern).status(), key);
  };
  RETURN_IF_ERROR(check("target_modules", config.target_pattern));
  RETURN_IF_ERROR(check("exclude_modules", config.exclude_pattern));
  for (const std::string& pattern : config.layers_pattern) RETURN_IF_ERROR(check("layers_pattern", pattern));
  for (const auto& [pattern, rank] : config.rank_pattern) {
    RETURN_IF_ERROR(check("rank_pattern", AtTheEnd(pattern)));
    if (rank < 1 || rank > kMaxLoraRank) {
      return absl::InvalidArgumentError(
          absl::StrCat("rank_pattern: ", pattern, " is ", rank, "; it must lie in 1..", kMaxLoraRank));
    }
  }
  for (const auto& [pattern, alpha] : config.alpha_pattern) {
    RETURN_IF_ERROR(check("alpha_pattern", AtTheEnd(pattern)));
    if (!std::isfinite(alpha)) {
      return absl::InvalidArgumentError(absl::StrCat("alpha_pattern: ", pattern, " is no finite number"));
    }
  }
  for (const std::string& module : config.modules_to_save) RETURN_IF_ERROR(check("modules_to_save", Within(module)));
  return absl::OkStatus();
}

// "model.layers.<index>." -> index.
std::optional<int64_t> LayerOf(const std::string& module) {
  if (!absl::StartsWith(module, kLayers)) return std::nullopt;
  return std::atoll(module.c_str() + kLayers.size());
}

bool InChosenLayers(const LoraConfig& config, const std::string& module) {
  if (config.layers_to_transform.empty()) return true;
  const auto& patterns = config.layers_pattern;
  const bool found = patterns.empty() || std::any_of(patterns.begin(), patterns.end(), [](const std::string& pattern) {
                       return MatchesPattern(absl::StrCat("(?:.*?\\.)?(?:", pattern, ")"), "model.layers");
                     });
  const std::optional<int64_t> layer = LayerOf(module);
  const auto& layers = config.layers_to_transform;
  return found && layer.has_value() && std::find(layers.begin(), layers.end(), *layer) != layers.end();
}

bool IsExcluded(const LoraConfig& config, const std::string& module) {
  if (!config.exclude_pattern.empty() && MatchesPattern(config.exclude_pattern, module)) return true;
  const auto& names = config.exclude_modules;
  if (std::any_of(names.begin(), names.end(), [&](const auto& name) { return Names(name, module); })) return true;
  const auto& saved = config.modules_to_save;
  return std::any_of(saved.begin(), saved.end(), [&](const auto& m) { return MatchesPattern(Within(m), module); });
}

bool IsTarget(const LoraConfig& config, const std::string& module) {
  if (IsExcluded(config, module)) return false;
  if (IsAllLinear(config)) return !IsEmbedding(module);
  if (!config.target_pattern.empty()) return MatchesPattern(config.target_pattern, module);
  const auto& names = config.target_modules;
  if (std::find(names.begin(), names.end(), module) != names.end()) return true;
  return std::any_of(names.begin(), names.end(), [&](const auto& name) { return Names(name, module); }) &&
         InChosenLayers(config, module);
}

bool IsParameter(const LoraModule& module) {
  return module.experts > 0 || absl::EndsWith(module.name, ".mlp.gate.weight");
}

// DeepSeek's experts and router were linear modules in transformers 4; now PEFT adapts the stacked parameters in their
// stead. Names of dense and shared MLPs, which are the same, go with them.
constexpr std::array<std::pair<absl::string_view, absl::string_view>, 4> kExpertNames = {
    {{"gate", "gate.weight"}, {"gate_proj", "gate_up_proj"}, {"up_proj", "gate_up_proj"}, {"down_proj", "down_proj"}}};

// The names at the ends of what a pattern or "all-linear" matches.
std::set<std::string> LeavesOf(const ModelConfig& model, const LoraConfig& config) {
  std::set<std::string> leaves;
  if (IsAllLinear(config)) {
    for (const LoraModule& module : LinearModules(model)) leaves.insert(Leaf(module.name));
    for (const auto& [name, parameter] : kExpertNames) leaves.insert(std::string(name));
    return leaves;
  }
  for (const LoraModule& module : AdaptableModules(model)) {
    if (!IsParameter(module)) {
      if (IsTarget(config, module.name)) leaves.insert(Leaf(module.name));
      continue;
    }
    const std::string container = module.name.substr(0, module.name.rfind('.'));
    if (module.experts == 0) {
      if (IsTarget(config, container)) leaves.insert("gate");
      continue;
    }
    for (const char* name : {"gate_proj", "up_proj", "down_proj"}) {
      if (IsTarget(config, absl::StrCat(container, ".", name))) leaves.insert(name);
    }
  }
  return leaves;
}

absl::Status ConvertExpertNames(const ModelConfig& model, LoraConfig& config) {
  if (!absl::StartsWith(model.model_type, "deepseek")) return absl::OkStatus();
  if (IsAllLinear(config) || !config.target_pattern.empty()) {
    const std::set<std::string> leaves = LeavesOf(model, config);
    if (leaves.empty()) return absl::OkStatus();  // the usual error
    config.target_modules.assign(leaves.begin(), leaves.end());
    config.target_pattern.clear();
  }
  std::set<std::string> parameters(config.target_parameters.begin(), config.target_parameters.end());
  std::vector<std::string> remaining;
  std::set<absl::string_view> fused;
  for (const std::string& target : config.target_modules) {
    const auto* found = std::find_if(kExpertNames.begin(), kExpertNames.end(),
                                     [&](const auto& entry) { return Names(std::string(entry.first), target); });
    if (found == kExpertNames.end()) {
      remaining.push_back(target);
      continue;
    }
    parameters.insert(std::string(found->second));
    if (found->second == "gate_up_proj") fused.insert(found->first);
  }
  if (fused.size() == 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "target_modules: ", *fused.begin(), " needs ", *fused.begin() == "up_proj" ? "gate_proj" : "up_proj",
        " beside it: in this model's experts the two are one tensor, gate_up_proj"));
  }
  if (fused.size() == 2) {
    const auto set = [](auto& pattern, auto value) {
      const std::string key = ".*\\.gate_up_proj";
      for (auto& [existing, old] : pattern) {
        if (existing == key) {
          old = value;
          return;
        }
      }
      pattern.emplace_back(key, value);
    };
    set(config.rank_pattern, 2 * config.r);
    set(config.alpha_pattern, 2 * config.lora_alpha);
  }
  config.target_modules = std::move(remaining);
  config.target_parameters.assign(parameters.begin(), parameters.end());
  return absl::OkStatus();
}

// Names that choose just `chosen` of `all`: ends of names where that will do, else whole names.
std::vector<std::string> NamesOf(const std::vector<std::string>& chosen, const std::vector<std::string>& all,
                                 const std::function<std::string(const std::string&)>& end_of) {
  std::set<std::string> ends;
  for (const std::string& name : chosen) ends.insert(end_of(name));
  const auto selected = std::count_if(all.begin(), all.end(), [&](const std::string& name) {
    return std::any_of(ends.begin(), ends.end(), [&](const auto& end) { return Names(end, name); });
  });
  if (selected == static_cast<int64_t>(chosen.size())) return {ends.begin(), ends.end()};
  std::vector<std::string> names = chosen;
  std::sort(names.begin(), names.end());
  return names;
}

std::string ParameterEnd(const std::string& name) {
  return absl::EndsWith(name, ".gate.weight") ? "gate.weight" : Leaf(name);
}

// Every tensor of the model with its shape; a tied lm_head too.
std::vector<std::pair<std::string, std::vector<int64_t>>> Tensors(const ModelConfig& model) {
  std::vector<std::pair<std::string, std::vector<int64_t>>> tensors;
  ModelWeights empty;
  empty.config = model;
  VisitTensors(empty, [&](const TensorPlace& place) {
    tensors.emplace_back(place.name, place.shape);
    return absl::OkStatus();
  }).IgnoreError();
  if (model.tie_word_embeddings)
    tensors.emplace_back("lm_head.weight", std::vector{model.vocab_size, model.hidden_size});
  return tensors;
}

// Whether `tensor` lies in a module whose name ends in `saved`.
bool SavedBy(const std::string& saved, const std::string& tensor) {
  for (size_t dot = tensor.find('.'); dot != std::string::npos; dot = tensor.find('.', dot + 1)) {
    if (absl::EndsWith(absl::string_view(tensor).substr(0, dot), saved)) return true;
  }
  return false;
}

absl::Status CheckSavedModules(const ModelConfig& model, const LoraConfig& config, bool strict) {
  const auto tensors = Tensors(model);
  for (const std::string& saved : config.modules_to_save) {
    bool any = false;
    for (const auto& [name, shape] : tensors) {
      if (!SavedBy(saved, name)) continue;
      any = true;
      if (absl::StrContains(name, ".mlp.experts.") || absl::StrContains(name, ".mlp.gate.")) {
        return absl::UnimplementedError(absl::StrCat("modules_to_save: \"", saved, "\" holds ", name,
                                                     "; experts and routers cannot be trained whole"));
      }
    }
    if (!any && strict) {
      return absl::InvalidArgumentError(absl::StrCat("modules_to_save: \"", saved,
                                                     "\" is no module of the model; there are lm_head, embed_tokens, "
                                                     "norm, and those of the layers"));
    }
  }
  return absl::OkStatus();
}

// Adapted embeddings that are to stay tied are adapted both: PEFT gives the head the embedding's adapter, the other way
// round.
void TieTargets(LoraConfig& config) {
  const auto any = [](const auto& names, const auto& test) { return std::any_of(names.begin(), names.end(), test); };
  const auto is_leaf = [](const std::string& name) {
    return Leaf(name) == "embed_tokens" || Leaf(name) == kHeadModule;
  };
  if (!config.ensure_weight_tying || IsAllLinear(config) || any(config.modules_to_save, is_leaf)) return;
  if (!config.target_pattern.empty()) {
    // PEFT asks for the bare names.
    if (!MatchesPattern(config.target_pattern, "embed_tokens") && !MatchesPattern(config.target_pattern, "lm_head")) {
      return;
    }
    config.target_pattern = absl::StrCat("(?:", config.target_pattern, "|model\\.embed_tokens|lm_head)");
  } else if (any(config.target_modules, is_leaf)) {
    auto& targets = config.target_modules;
    for (const absl::string_view name : {kEmbeddingModule, kHeadModule}) {
      if (std::find(targets.begin(), targets.end(), name) == targets.end()) targets.emplace_back(name);
    }
  }
}

absl::Status CheckEmbeddings(const ModelConfig& model, const LoraConfig& config,
                             const std::vector<std::string>& chosen) {
  const auto has = [&](absl::string_view name) {
    return std::find(chosen.begin(), chosen.end(), name) != chosen.end();
  };
  if (absl::StartsWith(config.init_lora_weights, "pissa")) {
    const bool shared = model.tie_word_embeddings && has(kHeadModule);
    if (shared || has(kEmbeddingModule)) {
      return absl::UnimplementedError(
          absl::StrCat("init_lora_weights: ", config.init_lora_weights, " is not supported for ",
                       shared ? "a tied lm_head" : "embed_tokens",
                       "; take it out of target_modules or choose another init_lora_weights"));
    }
  }
  const auto& saved = config.modules_to_save;
  const bool whole = std::any_of(saved.begin(), saved.end(), [](const auto& name) {
    return absl::EndsWith(kEmbeddingModule, name) || absl::EndsWith(kHeadModule, name);
  });
  if (config.ensure_weight_tying && whole && (has(kEmbeddingModule) || has(kHeadModule))) {
    return absl::UnimplementedError(
        "ensure_weight_tying: embed_tokens and lm_head cannot stay tied where modules_to_save names one and "
        "target_modules the other; name both in the same list");
  }
  return absl::OkStatus();
}

absl::Status NoSuchModule(const ModelConfig& model, absl::string_view target) {
  std::set<std::string> there;  // within a layer
  for (const LoraModule& module : LinearModules(model)) {
    const size_t layer = module.name.find('.', kLayers.size());
    there.insert(module.name.substr(layer + 1));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("target_modules: \"", target, "\" matches no linear module of the model; there are ",
                   absl::StrJoin(there, ", "), ", all of them as all-linear, and embed_tokens and lm_head"));
}

}  // namespace

std::vector<LoraModule> LinearModules(const ModelConfig& config) {
  std::vector<LoraModule> modules;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    for (const ProjectionShape& shape : ProjectionsOf(config, layer)) {
      modules.push_back(
          {absl::StrCat(kLayers, layer, ".", ProjectionName(shape.projection)), shape.in_features, shape.out_features});
    }
  }
  return modules;
}

std::vector<LoraModule> AdaptableModules(const ModelConfig& config) {
  std::vector<LoraModule> modules = {{std::string(kEmbeddingModule), config.vocab_size, config.hidden_size}};
  for (LoraModule& module : LinearModules(config)) modules.push_back(std::move(module));
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (!config.is_moe(layer)) continue;
    const MoeConfig& moe = *config.moe;
    const std::string mlp = absl::StrCat(kLayers, layer, ".mlp.");
    modules.push_back({mlp + "gate.weight", config.hidden_size, moe.num_experts});
    modules.push_back({mlp + "experts.gate_up_proj", config.hidden_size, 2 * moe.intermediate_size, moe.num_experts});
    modules.push_back({mlp + "experts.down_proj", moe.intermediate_size, config.hidden_size, moe.num_experts});
  }
  modules.push_back({std::string(kHeadModule), config.hidden_size, config.vocab_size});
  return modules;
}

int64_t RankOf(const LoraConfig& config, const std::string& module) {
  for (const auto& [pattern, rank] : config.rank_pattern) {
    if (MatchesPattern(AtTheEnd(pattern), module)) return rank;
  }
  return config.r;
}

double ScalingOf(const LoraConfig& config, const std::string& module) {
  double alpha = config.lora_alpha;
  for (const auto& [pattern, value] : config.alpha_pattern) {
    if (!MatchesPattern(AtTheEnd(pattern), module)) continue;
    alpha = value;
    break;
  }
  const auto rank = static_cast<double>(RankOf(config, module));
  return alpha / (config.use_rslora ? std::sqrt(rank) : rank);
}

std::vector<LoraModule> SelectedModules(const ModelConfig& model, const LoraConfig& config) {
  std::vector<LoraModule> selected;
  for (LoraModule& module : AdaptableModules(model)) {
    const auto& parameters = config.target_parameters;
    const bool chosen = IsParameter(module) ? std::any_of(parameters.begin(), parameters.end(),
                                                          [&](const auto& name) { return Names(name, module.name); })
                                            : IsTarget(config, module.name);
    if (chosen) selected.push_back(std::move(module));
  }
  return selected;
}

absl::Status ResolveTargets(const ModelConfig& model, LoraConfig& config, bool strict) {
  RETURN_IF_ERROR(CheckPatterns(config));
  config.ensure_weight_tying = config.ensure_weight_tying && model.tie_word_embeddings;
  if (config.target_modules.empty() && config.target_pattern.empty() && config.target_parameters.empty()) {
    return absl::InvalidArgumentError("target_modules: the list is empty");
  }
  TieTargets(config);
  RETURN_IF_ERROR(ConvertExpertNames(model, config));
  std::vector<std::string> all, all_parameters, chosen, chosen_parameters;
  for (const LoraModule& module : AdaptableModules(model)) {
    (IsParameter(module) ? all_parameters : all).push_back(module.name);
  }
  for (const std::string& target : config.target_modules) {
    if (!strict || IsAllLinear(config)) break;
    if (std::none_of(all.begin(), all.end(), [&](const auto& name) { return Names(target, name); })) {
      return NoSuchModule(model, target);
    }
  }
  for (const LoraModule& module : SelectedModules(model, config)) {
    (IsParameter(module) ? chosen_parameters : chosen).push_back(module.name);
  }
  for (const std::string& parameter : config.target_parameters) {
    const bool found = std::any_of(all_parameters.begin(), all_parameters.end(),
                                   [&](const auto& name) { return Names(parameter, name); });
    const bool of_experts = std::any_of(kExpertNames.begin(), kExpertNames.end(),
                                        [&](const auto& entry) { return entry.second == parameter; });
    if (found || of_experts) continue;
    return absl::UnimplementedError(absl::StrCat("target_parameters: \"", parameter,
                                                 "\" is not supported in this model; stacked experts (gate_up_proj, "
                                                 "down_proj) and routers (gate.weight) are, where a model has them"));
  }
  if (chosen.empty() && chosen_parameters.empty()) {
    return NoSuchModule(
        model, config.target_pattern.empty() ? absl::StrJoin(config.target_modules, ", ") : config.target_pattern);
  }
  if (!chosen_parameters.empty() && (config.use_dora || config.lora_dropout > 0)) {
    return absl::InvalidArgumentError(absl::StrCat(config.use_dora ? "use_dora" : "lora_dropout",
                                                   ": experts and routers (", chosen_parameters.front(),
                                                   ") cannot be adapted with it; choose other target_modules"));
  }
  RETURN_IF_ERROR(CheckEmbeddings(model, config, chosen));
  RETURN_IF_ERROR(CheckSavedModules(model, config, strict));
  config.target_modules = NamesOf(chosen, all, Leaf);
  config.target_parameters = NamesOf(chosen_parameters, all_parameters, ParameterEnd);
  config.target_pattern.clear();
  config.exclude_modules.clear();
  config.exclude_pattern.clear();
  config.layers_to_transform.clear();
  config.layers_pattern.clear();
  return absl::OkStatus();
}

std::vector<std::pair<std::string, std::vector<int64_t>>> FullTensors(const ModelConfig& model,
                                                                      const LoraConfig& config) {
  std::set<std::string> adapted;
  for (const LoraModule& module : SelectedModules(model, config)) adapted.insert(module.name);
  const bool together = model.tie_word_embeddings && config.ensure_weight_tying;
  bool embeddings = false;
  std::vector<std::pair<std::string, std::vector<int64_t>>> full;
  for (auto& [name, shape] : Tensors(model)) {
    bool wanted = std::any_of(config.modules_to_save.begin(), config.modules_to_save.end(),
                              [&, &tensor = name](const auto& saved) { return SavedBy(saved, tensor); });
    if (absl::EndsWith(name, ".bias")) {
      wanted = wanted || config.bias == LoraBias::kAll ||
               (config.bias == LoraBias::kLoraOnly && adapted.contains(name.substr(0, name.size() - 5)));
    }
    if (!wanted) continue;
    if (together && (name == "lm_head.weight" || name == "model.embed_tokens.weight")) {
      embeddings = true;
      continue;
    }
    full.emplace_back(name, shape);
  }
  if (embeddings) {
    full.emplace(full.begin(), "model.embed_tokens.weight", std::vector{model.vocab_size, model.hidden_size});
  }
  return full;
}

}  // namespace retort
