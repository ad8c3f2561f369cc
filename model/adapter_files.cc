#include <ATen/ops/cat.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/file.h"
#include "common/json.h"
#include "common/status.h"
#include "model/adapter_config.h"
#include "model/lora.h"
#include "model/safetensors.h"
#include "model/torch_status.h"
#include "model/vocabulary.h"

namespace retort {
namespace {

using internal::AdapterConfig;
using nlohmann::ordered_json;

constexpr const char* kConfigFile = "adapter_config.json";
constexpr const char* kTensorFile = "adapter_model.safetensors";
constexpr absl::string_view kPrefix = "base_model.model.";
constexpr absl::string_view kSuffixA = ".lora_A.weight";
constexpr absl::string_view kSuffixB = ".lora_B.weight";
constexpr absl::string_view kSuffixEmbeddingA = ".lora_embedding_A";
constexpr absl::string_view kSuffixEmbeddingB = ".lora_embedding_B";
constexpr absl::string_view kSuffixMagnitude = ".lora_magnitude_vector";
constexpr absl::string_view kSuffixOriginal = ".original_module.weight";
constexpr absl::string_view kSuffixSaved = ".modules_to_save.weight";
constexpr absl::string_view kHead = "lm_head.weight";
constexpr absl::string_view kEmbeddings = "model.embed_tokens.weight";
// In the tensor file's metadata: the config of the trained half, where the other is a frozen one.
constexpr const char* kFrozenHalf = "retort_trained_half";
constexpr int64_t kMaxConfigBytes = 16 << 20;

// How PEFT names each tensor of an adapter, and where it goes.
struct Place {
  enum class Part { kA, kB, kMagnitude, kFull };
  Part part;
  std::string name;  // of the module, or of the base model's tensor
  std::vector<int64_t> shape;
  bool optional = false;
};

// A parameter's adapter hangs on its module; of two that a module has, PEFT nests the first in the second.
std::string ModulePath(const std::string& name, const std::set<std::string>& adapted) {
  if (absl::EndsWith(name, ".mlp.gate.weight")) return name.substr(0, name.rfind('.'));
  if (!absl::StrContains(name, ".mlp.experts.")) return name;
  const std::string experts = name.substr(0, name.rfind('.'));
  const bool nested = absl::EndsWith(name, ".gate_up_proj") && adapted.contains(experts + ".down_proj");
  return nested ? experts + ".base_layer" : experts;
}

absl::string_view SuffixA(absl::string_view module) {
  return module == kEmbeddingModule ? kSuffixEmbeddingA : kSuffixA;
}
absl::string_view SuffixB(absl::string_view module) {
  return module == kEmbeddingModule ? kSuffixEmbeddingB : kSuffixB;
}

std::map<std::string, Place> PlacesOf(const ModelConfig& model, const LoraConfig& config) {
  const std::vector<LoraModule> modules = SelectedModules(model, config);
  std::set<std::string> adapted;
  for (const LoraModule& module : modules) adapted.insert(module.name);
  std::map<std::string, Place> places;
  for (const LoraModule& module : modules) {
    const std::string path = absl::StrCat(kPrefix, ModulePath(module.name, adapted));
    const int64_t rank = RankOf(config, module.name) * std::max<int64_t>(1, module.experts);
    places[absl::StrCat(path, SuffixA(module.name))] = {Place::Part::kA, module.name, {rank, module.in_features}};
    places[absl::StrCat(path, SuffixB(module.name))] = {Place::Part::kB, module.name, {module.out_features, rank}};
    if (config.use_dora) {
      places[absl::StrCat(path, kSuffixMagnitude)] = {Place::Part::kMagnitude, module.name, {module.out_features}};
    }
  }
  const auto full = FullTensors(model, config);
  for (const auto& [name, shape] : full) {
    const std::string module = name.substr(0, name.rfind('.'));
    const std::string path = adapted.contains(module) ? absl::StrCat(module, ".base_layer.bias") : name;
    places[absl::StrCat(kPrefix, path)] = {Place::Part::kFull, name, shape};
    if (name == kEmbeddings && model.tie_word_embeddings && config.ensure_weight_tying) {
      places[absl::StrCat(kPrefix, kHead)] = {Place::Part::kFull, name, shape, /*optional=*/true};
    }
  }
  return places;
}

absl::Status UnknownTensor(const std::string& path, const std::string& tensor, const ModelConfig& model) {
  absl::string_view name = tensor;
  const bool known = absl::ConsumePrefix(&name, kPrefix) &&
                     (absl::ConsumeSuffix(&name, kSuffixA) || absl::ConsumeSuffix(&name, kSuffixB) ||
                      absl::ConsumeSuffix(&name, kSuffixEmbeddingA) || absl::ConsumeSuffix(&name, kSuffixEmbeddingB) ||
                      absl::ConsumeSuffix(&name, kSuffixMagnitude));
  if (!known) {
    return absl::UnimplementedError(absl::StrCat(path, ": tensor \"", tensor, "\" is not supported with this ",
                                                 kConfigFile, "; ", kPrefix, "<module>", kSuffixA, ", ", kSuffixB,
                                                 " and what bias, use_dora and modules_to_save ask for are"));
  }
  for (const LoraModule& module : AdaptableModules(model)) {
    if (module.name != name) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": holds module \"", name, "\", which target_modules does not name, or not with these switches"));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": tensor \"", tensor, "\": the model has no such linear module to adapt"));
}

at::Tensor& Slot(const Place& place, LoraAdapter& adapter) {
  switch (place.part) {
    case Place::Part::kA:
      return adapter.modules[place.name].a;
    case Place::Part::kB:
      return adapter.modules[place.name].b;
    case Place::Part::kMagnitude:
      return adapter.modules[place.name].magnitude;
    case Place::Part::kFull:
      break;
  }
  return adapter.full[place.name];
}

absl::Status ReadTensor(const SafetensorsFile& file, const std::string& path, const std::string& name,
                        const std::vector<int64_t>& shape, at::Tensor& out) {
  ASSIGN_OR_RETURN(const at::Tensor stored, file.Get(name));
  if (stored.sizes() != at::IntArrayRef(shape)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": tensor \"", name, "\" has shape [",
                                                   absl::StrJoin(stored.sizes(), ", "), "], model and r ask for [",
                                                   absl::StrJoin(shape, ", "), "]"));
  }
  if (stored.scalar_type() != at::kFloat && stored.scalar_type() != at::kBFloat16 &&
      stored.scalar_type() != at::kHalf) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": tensor \"", name, "\" is stored as ",
                                                   c10::toString(stored.scalar_type()),
                                                   "; only float32, bfloat16 and float16 are supported"));
  }
  return CatchTorchErrors(absl::StrCat(path, ": load ", name), [&]() -> absl::Status {
    out = stored.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
    return absl::OkStatus();
  });
}

// What is missing. Modules may be absent as a whole where only a pattern asks for them, or where other layers have
// theirs: PEFT leaves such a module as it is.
absl::Status CheckComplete(const std::string& path, const std::map<std::string, Place>& places,
                           const std::set<std::string>& found, bool targets_in_tensors, const LoraAdapter& adapter) {
  for (const auto& [tensor, place] : places) {
    if (place.optional || found.contains(tensor)) continue;
    if (place.part == Place::Part::kFull) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": lacks \"", tensor, "\", which bias or modules_to_save asks for"));
    }
    if (adapter.modules.contains(place.name)) {
      const absl::string_view part = absl::string_view(tensor).substr(tensor.find(".lora_") + 1);
      return absl::InvalidArgumentError(absl::StrCat(path, ": module \"", place.name, "\" lacks ", part));
    }
    const auto leaf = [](const std::string& name) { return name.substr(name.rfind('.') + 1); };
    const bool elsewhere =
        std::any_of(adapter.modules.begin(), adapter.modules.end(),
                    [&, wanted = leaf(place.name)](const auto& entry) { return leaf(entry.first) == wanted; });
    if (targets_in_tensors || elsewhere) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has no tensors of module \"", place.name, "\", which target_modules names"));
  }
  return absl::OkStatus();
}

absl::Status ReadTensors(const SafetensorsFile& file, const std::string& path, const ModelConfig& model,
                         bool targets_in_tensors, LoraAdapter& adapter) {
  const std::map<std::string, Place> places = PlacesOf(model, adapter.config);
  std::set<std::string> found;
  for (const std::string& name : file.names()) {
    const auto place = places.find(name);
    if (place != places.end()) {
      RETURN_IF_ERROR(ReadTensor(file, path, name, place->second.shape, Slot(place->second, adapter)));
      found.insert(name);
      continue;
    }
    // Embeddings that PEFT keeps beside an adapter, changed or not.
    if (const std::string whole = WholeEmbedding(name); !whole.empty()) {
      RETURN_IF_ERROR(ReadTensor(file, path, name, {model.vocab_size, model.hidden_size}, adapter.replaced[whole]));
      continue;
    }
    absl::string_view plain = absl::StripPrefix(name, kPrefix);
    // Of those that are trained too PEFT then writes what they were, and what they are a second time.
    const bool wrapped = absl::ConsumeSuffix(&plain, kSuffixOriginal) || absl::ConsumeSuffix(&plain, kSuffixSaved);
    if (wrapped && places.contains(absl::StrCat(kPrefix, plain, ".weight"))) continue;
    return UnknownTensor(path, name, model);
  }
  RETURN_IF_ERROR(CheckComplete(path, places, found, targets_in_tensors, adapter));
  if (adapter.modules.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": holds no tensors"));
  return absl::OkStatus();
}

// The tensors decide which modules there are.
absl::Status NarrowToTensors(const ModelConfig& model, LoraAdapter& adapter) {
  LoraConfig& config = adapter.config;
  if (SelectedModules(model, config).size() == adapter.modules.size()) return absl::OkStatus();
  config.target_modules.clear();
  config.target_parameters.clear();
  for (const auto& [name, pair] : adapter.modules) {
    (ModulePath(name, {}) != name ? config.target_parameters : config.target_modules).push_back(name);
  }
  return ResolveTargets(model, config, /*strict=*/false);
}

absl::StatusOr<ordered_json> ReadConfig(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
  RETURN_IF_ERROR(ParseJson(text, path).status());
  return ordered_json::parse(text);  // again, for the order of patterns
}

// Takes the trained half and the frozen one apart.
absl::Status SplitFrozen(const std::string& trained_config, LoraAdapter& adapter) {
  RETURN_IF_ERROR(ParseJson(trained_config, kFrozenHalf).status());
  ASSIGN_OR_RETURN(const AdapterConfig trained, internal::ParseAdapterConfig(ordered_json::parse(trained_config)));
  for (auto& [name, pair] : adapter.modules) {
    const int64_t rank = RankOf(trained.config, name);
    if (pair.a.size(0) != 2 * rank)
      return absl::InvalidArgumentError(absl::StrCat(kFrozenHalf, ": ", name, " is no pair"));
    pair.frozen_a = pair.a.narrow(0, rank, rank).contiguous();
    pair.frozen_b = pair.b.narrow(1, rank, rank).neg().contiguous();
    pair.a = pair.a.narrow(0, 0, rank).contiguous();
    pair.b = pair.b.narrow(1, 0, rank).contiguous();
  }
  adapter.config.r = trained.config.r;
  adapter.config.lora_alpha = trained.config.lora_alpha;
  adapter.config.rank_pattern = trained.config.rank_pattern;
  adapter.config.alpha_pattern = trained.config.alpha_pattern;
  return absl::OkStatus();
}

// The same adapter for the unchanged base: W - s B0 A0 + s B A.
LoraAdapter JoinFrozen(const LoraAdapter& adapter) {
  LoraAdapter joined = adapter;
  LoraConfig& config = joined.config;
  const double factor = config.use_rslora ? std::sqrt(2.0) : 2.0;
  config.r *= 2;
  config.lora_alpha *= factor;
  for (auto& [pattern, rank] : config.rank_pattern) rank *= 2;
  for (auto& [pattern, alpha] : config.alpha_pattern) alpha *= factor;
  config.init_lora_weights = "true";
  for (auto& [name, pair] : joined.modules) {
    pair = {.a = at::cat({pair.a, pair.frozen_a}, 0),
            .b = at::cat({pair.b, pair.frozen_b.neg()}, 1),
            .magnitude = pair.magnitude};
  }
  return joined;
}

}  // namespace

absl::StatusOr<LoraAdapter> LoadAdapter(const std::string& folder, const ModelConfig& base,
                                        const LoadAdapterOptions& options) {
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
  ASSIGN_OR_RETURN(const ordered_json object, ReadConfig(config_path));
  auto parsed = internal::ParseAdapterConfig(object);
  if (!parsed.ok()) return WithContext(parsed.status(), config_path);
  // Tokens may have been added for the adapter.
  ModelConfig model = base;
  ASSIGN_OR_RETURN(model.vocab_size, VocabularyUnder(folder, base));
  LoraAdapter adapter;
  adapter.config = std::move(parsed->config);
  RETURN_IF_ERROR(WithContext(ResolveTargets(model, adapter.config, /*strict=*/false), config_path));
  ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(tensor_path));
  RETURN_IF_ERROR(ReadTensors(file, tensor_path, model, parsed->targets_in_tensors, adapter));
  RETURN_IF_ERROR(NarrowToTensors(model, adapter));
  const auto half = file.metadata().find(kFrozenHalf);
  if (options.keep_frozen && half != file.metadata().end()) {
    RETURN_IF_ERROR(
        WithContext(CatchTorchErrors(tensor_path, [&] { return SplitFrozen(half->second, adapter); }), tensor_path));
  }
  return adapter;
}

absl::Status SaveAdapter(const LoraAdapter& adapter, const std::string& folder) {
  const bool frozen = std::any_of(adapter.modules.begin(), adapter.modules.end(),
                                  [](const auto& entry) { return entry.second.frozen_a.defined(); });
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  if (frozen) metadata[kFrozenHalf] = internal::AdapterConfigToJson(adapter.config).dump();
  return CatchTorchErrors(absl::StrCat("save adapter ", folder), [&]() -> absl::Status {
    const LoraAdapter written = frozen ? JoinFrozen(adapter) : adapter;
    std::set<std::string> adapted;
    for (const auto& [name, pair] : written.modules) adapted.insert(name);
    std::map<std::string, at::Tensor> tensors;
    for (const auto& [name, pair] : written.modules) {
      const std::string path = absl::StrCat(kPrefix, ModulePath(name, adapted));
      tensors[absl::StrCat(path, SuffixA(name))] = pair.a;
      tensors[absl::StrCat(path, SuffixB(name))] = pair.b;
      if (pair.magnitude.defined()) tensors[absl::StrCat(path, kSuffixMagnitude)] = pair.magnitude;
    }
    for (const auto& [name, tensor] : written.full) {
      const std::string module = name.substr(0, name.rfind('.'));
      tensors[absl::StrCat(kPrefix, adapted.contains(module) ? module + ".base_layer.bias" : name)] = tensor;
    }
    // PEFT looks for tied embeddings that are trained as one under both names.
    const auto embeddings = written.full.find(std::string(kEmbeddings));
    if (written.config.ensure_weight_tying && embeddings != written.full.end()) {
      tensors[absl::StrCat(kPrefix, kHead)] = embeddings->second;
    }
    for (const auto& [name, tensor] : written.replaced) {
      const std::string module = name.substr(0, name.rfind('.'));
      tensors[absl::StrCat(kPrefix, adapted.contains(module) ? module + ".base_layer.weight" : name)] = tensor;
    }
    RETURN_IF_ERROR(WriteSafetensors(absl::StrCat(folder, "/", kTensorFile), tensors, metadata));
    return WriteFileAtomically(absl::StrCat(folder, "/", kConfigFile),
                               internal::AdapterConfigToJson(written.config).dump(2) + "\n");
  });
}

}  // namespace retort
