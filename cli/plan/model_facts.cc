#include "cli/plan/model_facts.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/json.h"
#include "common/status.h"

namespace retort::cli {
namespace {

constexpr int64_t kMaxSize = int64_t{1} << 32;
constexpr int64_t kMaxStateBytes = 1 << 16;

absl::StatusOr<int64_t> Size(const nlohmann::json& config, const std::string& path, const char* key, int64_t fallback) {
  const auto it = config.find(key);
  if (it == config.end() || it->is_null()) {
    if (fallback > 0) return fallback;
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", key, ": missing"));
  }
  if (!it->is_number_integer() || it->get<int64_t>() < 1 || it->get<int64_t>() > kMaxSize) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", key, ": wants a whole number >= 1"));
  }
  return it->get<int64_t>();
}

// The name of the weight that a tensor is a part of, as bitsandbytes keeps quantised matrices ("X.weight.absmax",
// "X.SCB"); empty: of none.
std::string QuantisedWeight(absl::string_view name) {
  if (const size_t at = name.find(".weight."); at != absl::string_view::npos)
    return std::string(name.substr(0, at + 7));
  for (const absl::string_view part : {".SCB", ".weight_format"}) {
    if (absl::ConsumeSuffix(&name, part)) return absl::StrCat(name, ".weight");
  }
  return "";
}

// The shape that a tensor of JSON beside a 4-bit matrix tells.
absl::StatusOr<std::vector<int64_t>> ReadShape(const TensorInfo& state) {
  const auto bad = [&](absl::string_view why) {
    return absl::InvalidArgumentError(absl::StrCat(state.file, ": tensor \"", state.name, "\" ", why));
  };
  if (state.bytes > kMaxStateBytes) return bad("is too long");
  std::string text(static_cast<size_t>(state.bytes), '\0');
  std::ifstream file(state.file, std::ios::binary);
  if (!file.seekg(state.offset) || !file.read(text.data(), state.bytes)) return bad("cannot be read");
  ASSIGN_OR_RETURN(const nlohmann::json object, ParseJson(text, absl::StrCat(state.file, ": ", state.name)));
  if (!object.is_object()) return bad("is not a JSON object");
  const nlohmann::json shape = object.value("shape", nlohmann::json());
  if (!shape.is_array() || shape.size() != 2) return bad("tells no shape of a matrix");
  for (const nlohmann::json& size : shape) {
    if (!size.is_number_integer() || size < 1 || size > kMaxSize) return bad("tells no shape of a matrix");
  }
  return shape.get<std::vector<int64_t>>();
}

// Where matrices are quantised, puts their shapes and the bytes of all their parts in their place. Returns the names of
// those.
absl::StatusOr<std::set<std::string>> JoinQuantised(std::vector<TensorInfo>& tensors) {
  std::map<std::string, TensorInfo*> weights;
  for (TensorInfo& tensor : tensors) {
    if (absl::EndsWith(tensor.name, ".weight")) weights[tensor.name] = &tensor;
  }
  std::set<std::string> quantised;
  for (const TensorInfo& tensor : tensors) {
    const auto weight = weights.find(QuantisedWeight(tensor.name));
    if (weight == weights.end()) continue;
    quantised.insert(weight->first);
    weight->second->bytes += tensor.bytes;
    if (absl::StrContains(tensor.name, ".quant_state.")) {
      ASSIGN_OR_RETURN(weight->second->shape, ReadShape(tensor));
    }
  }
  std::erase_if(tensors, [&](const TensorInfo& tensor) { return quantised.contains(QuantisedWeight(tensor.name)); });
  return quantised;
}

}  // namespace

int64_t ModelFacts::LoraParameters(int64_t r, const std::vector<std::string>& target_modules,
                                   const std::string& pattern) const {
  std::regex regex;
  try {
    regex = std::regex(pattern);
  } catch (const std::regex_error&) {  // the worker says what is wrong with it
    return 0;
  }
  const bool all = target_modules.size() == 1 && target_modules[0] == "all-linear";
  const auto named = [&](absl::string_view module) {
    if (!pattern.empty()) return std::regex_match(std::string(module), regex);
    return std::any_of(target_modules.begin(), target_modules.end(), [&](const std::string& target) {
      return module == target || absl::EndsWith(module, "." + target);
    });
  };
  int64_t sum = 0;
  for (const TensorInfo& tensor : linears) {
    if (all || named(absl::StripSuffix(tensor.name, ".weight"))) sum += r * (tensor.shape[0] + tensor.shape[1]);
  }
  for (const char* embeddings : {"model.embed_tokens", "lm_head"}) {
    if (named(embeddings)) sum += r * (vocab_size + hidden_size);
  }
  return sum;
}

int64_t ModelFacts::WholeParameters(const std::vector<std::string>& modules, int64_t rows, bool together) const {
  const auto named = [&](absl::string_view name) {
    return std::any_of(modules.begin(), modules.end(), [&](const std::string& module) {
      return name == module || absl::EndsWith(name, absl::StrCat(".", module));
    });
  };
  const bool embeddings = named("model.embed_tokens");
  const bool head = named("lm_head");
  const int64_t one = std::max(rows, vocab_size) * hidden_size;
  int64_t sum = (embeddings || head) && tied && together ? one : (int64_t{embeddings} + int64_t{head}) * one;
  for (const TensorInfo& tensor : tensors) {
    const absl::string_view module = absl::string_view(tensor.name).substr(0, tensor.name.rfind('.'));
    if (module == "model.embed_tokens" || module == "lm_head" || !named(module)) continue;
    int64_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= size;
    sum += elements;
  }
  return sum;
}

absl::StatusOr<ModelFacts> ReadModelFacts(const std::string& folder) {
  const std::string path = folder + "/config.json";
  ASSIGN_OR_RETURN(const nlohmann::json config, ReadJsonFile(path));
  if (!config.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, " is not a JSON object"));
  ModelFacts facts;
  ASSIGN_OR_RETURN(facts.layers, Size(config, path, "num_hidden_layers", 0));
  ASSIGN_OR_RETURN(facts.hidden_size, Size(config, path, "hidden_size", 0));
  ASSIGN_OR_RETURN(facts.intermediate_size, Size(config, path, "intermediate_size", 4 * facts.hidden_size));
  ASSIGN_OR_RETURN(facts.attention_heads, Size(config, path, "num_attention_heads", 0));
  ASSIGN_OR_RETURN(facts.key_value_heads, Size(config, path, "num_key_value_heads", facts.attention_heads));
  ASSIGN_OR_RETURN(facts.head_dim,
                   Size(config, path, "head_dim", std::max<int64_t>(1, facts.hidden_size / facts.attention_heads)));
  ASSIGN_OR_RETURN(facts.vocab_size, Size(config, path, "vocab_size", 0));
  ASSIGN_OR_RETURN(facts.max_positions, Size(config, path, "max_position_embeddings", 2048));
  const auto tied = config.find("tie_word_embeddings");
  ASSIGN_OR_RETURN(facts.tensors, ReadModelTensors(folder));
  ASSIGN_OR_RETURN(const std::set<std::string> quantised, JoinQuantised(facts.tensors));
  const bool has_head = std::any_of(facts.tensors.begin(), facts.tensors.end(),
                                    [](const TensorInfo& tensor) { return tensor.name == "lm_head.weight"; });
  facts.tied = tied != config.end() && tied->is_boolean() ? tied->get<bool>() : !has_head;
  for (const TensorInfo& tensor : facts.tensors) {
    int64_t elements = 1;
    for (const int64_t size : tensor.shape) elements *= size;
    facts.parameters += elements;
    facts.weight_bytes += tensor.bytes;
    // Adapters of routed experts and their gate are stacked parameters, which are not counted here.
    const bool routed =
        absl::StrContains(tensor.name, ".mlp.experts.") || absl::EndsWith(tensor.name, ".mlp.gate.weight");
    if (tensor.shape.size() == 2 && absl::StrContains(tensor.name, "layers.") && !routed &&
        absl::EndsWith(tensor.name, ".weight")) {
      facts.linear_parameters += elements;
      facts.largest_linear = std::max(facts.largest_linear, elements);
      if (quantised.contains(tensor.name)) {
        facts.quantised_parameters += elements;
        facts.quantised_bytes += tensor.bytes;
      }
      facts.linears.push_back(tensor);
    }
  }
  return facts;
}

}  // namespace retort::cli
