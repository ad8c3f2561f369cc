// LoRA adapters (Hu et al. 2021, arXiv:2106.09685) and their kin, in PEFT's folder layout: W x + scaling * B A x.
//
// Beside plain LoRA: rsLoRA (scaling = alpha / sqrt(r)), DoRA (Liu et al. 2024, arXiv:2402.09353), PiSSA (Meng et al.
// 2024, arXiv:2404.02948), ranks and alphas by module, trained biases and modules that are trained whole.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/weights.h"

namespace retort {

inline constexpr int64_t kMaxLoraRank = 65536;

// The embedding and the output head, as modules.
inline constexpr absl::string_view kEmbeddingModule = "model.embed_tokens";
inline constexpr absl::string_view kHeadModule = "lm_head";

enum class LoraBias { kNone, kAll, kLoraOnly };

struct LoraConfig {
  int64_t r = 16;
  double lora_alpha = 32.0;
  double lora_dropout = 0.0;
  std::vector<std::string> target_modules;  // whole names or ends of them, "q_proj", ...; the only one may be
                                            // "all-linear"
  std::string base_model_name_or_path;      // may be empty (null in the file)
  bool use_rslora = false;
  bool use_dora = false;
  LoraBias bias = LoraBias::kNone;
  // By regular expression for a module's name or the end of it; the first that matches counts.
  std::vector<std::pair<std::string, int64_t>> rank_pattern;
  std::vector<std::pair<std::string, double>> alpha_pattern;
  std::vector<std::string> modules_to_save;
  bool ensure_weight_tying = false;  // tied embeddings that are trained whole stay tied, adapted ones are both
  std::vector<std::string> target_parameters;  // stacked experts and routers, sorted
  std::string init_lora_weights = "true";      // "false", "gaussian", "pissa", "pissa_niter_<N>"

  // Narrow the choice; empty once it is resolved.
  std::string target_pattern;  // instead of target_modules: must match a module's whole name
  std::vector<std::string> exclude_modules;
  std::string exclude_pattern;
  std::vector<int64_t> layers_to_transform;
  std::vector<std::string> layers_pattern;
};

// One adapted module. Of stacked experts (`LoraModule::experts`), the ranks lie one after the other: rows e * r + i of
// A, columns i * experts + e of B. An embedding is the linear module whose weight is its transposed, as with PEFT's
// lora_embedding_A and _B.
struct LoraPair {
  at::Tensor a;          // [r, in_features], f32
  at::Tensor b;          // [out_features, r], f32
  at::Tensor magnitude;  // [out_features], f32: DoRA; else undefined
  // PiSSA: the base lacks scaling * frozen_b frozen_a, which is not trained. Shapes of a and b, or undefined.
  at::Tensor frozen_a, frozen_b;
};

// Modules by full name without prefix, e.g. "model.layers.0.self_attn.q_proj", ordered by name; stacked experts as
// "model.layers.1.mlp.experts.gate_up_proj", routers as "model.layers.1.mlp.gate.weight".
struct LoraAdapter {
  LoraConfig config;  // resolved
  std::map<std::string, LoraPair> modules;
  // Tensors that are trained whole (biases, modules_to_save), by their name in the base model's files, f32. Embeddings
  // that stay tied are "model.embed_tokens.weight".
  std::map<std::string, at::Tensor> full;
  // Embeddings that the adapter brings along and that are not trained: the base's, in place of its own.
  std::map<std::string, at::Tensor> replaced;
};

// What an adapter can adapt.
struct LoraModule {
  std::string name;
  int64_t in_features = 0;
  int64_t out_features = 0;
  int64_t experts = 0;  // above 0: stacked experts, each of these features
};

// The linear modules of a model by full name, in the model's order.
std::vector<LoraModule> LinearModules(const ModelConfig& config);
// These, embedding and head, and in mixtures of experts the stacked experts and the routers.
std::vector<LoraModule> AdaptableModules(const ModelConfig& config);

// The rank and scaling that a config gives a module. Patterns are valid where ResolveTargets has passed.
int64_t RankOf(const LoraConfig& config, const std::string& module);
double ScalingOf(const LoraConfig& config, const std::string& module);

// Turns every way of choosing modules into `target_modules` and `target_parameters`, and for DeepSeek models names of
// experts into their stacked parameters, as PEFT does. Errors: kInvalidArgument (a name or pattern that matches no
// module, says which there are; a pattern that is none), kUnimplemented (a module that cannot be adapted or trained
// whole). Not `strict`: names may match nothing, as long as some module is chosen, as with PEFT.
absl::Status ResolveTargets(const ModelConfig& model, LoraConfig& config, bool strict = true);
// The modules that a resolved config adapts, in the model's order.
std::vector<LoraModule> SelectedModules(const ModelConfig& model, const LoraConfig& config);
// Names and shapes of the tensors that a resolved config trains whole, in the model's order.
std::vector<std::pair<std::string, std::vector<int64_t>>> FullTensors(const ModelConfig& model,
                                                                      const LoraConfig& config);

// A new adapter, from a counter-based stream keyed by seed and module name: A as PEFT draws it (Kaiming uniform, a =
// sqrt(5): U(-1/sqrt(in), 1/sqrt(in))) and B zero unless init_lora_weights says otherwise; an embedding's A zero and B
// normal. `weights` may be null where nothing is taken from them (no DoRA, no PiSSA, nothing trained whole).
absl::StatusOr<LoraAdapter> InitLora(const ModelConfig& model, const LoraConfig& config, uint64_t seed,
                                     const ModelWeights* weights = nullptr);

struct LoadAdapterOptions {
  // A PiSSA adapter that SaveAdapter has written comes back with its frozen part apart, to go on training. Else it is
  // a plain adapter of twice the rank.
  bool keep_frozen = false;
};

// PEFT folder: adapter_config.json and adapter_model.safetensors ("base_model.model.<module>.lora_A.weight"). Its
// embeddings may have more rows than the model's: PrepareBase and MergeAdapter then let the model grow. What is not
// supported is refused by its key. Errors: kNotFound, kInvalidArgument, kUnimplemented.
absl::StatusOr<LoraAdapter> LoadAdapter(const std::string& folder, const ModelConfig& model,
                                        const LoadAdapterOptions& options = {});
// Writes both files into an existing folder. The same adapter gives the same bytes. A frozen part is joined to the
// trained one, as PEFT converts it: twice the rank, for the unchanged base.
absl::Status SaveAdapter(const LoraAdapter& adapter, const std::string& folder);

// An adapter whose config says "pissa" and that has no frozen parts was made by PEFT for a base that it finds anew each
// time: without the largest singular values. Finds the frozen parts likewise; MergeAdapter does so by itself.
absl::Status CompletePissa(const ModelWeights& weights, LoraAdapter& adapter);

// Makes `weights` the base that the adapter was made for: takes PiSSA's frozen part out of them, puts embeddings that
// it brings along in, and gives the model as many rows of embeddings as the adapter has.
absl::Status PrepareBase(const LoraAdapter& adapter, ModelWeights& weights);

// Puts the adapter into the weights, computed in f32 and rounded once: what changes is of `dtype` (unset: of the dtype
// that it had), so that weights may be given as the files have them. Tensors are replaced, not written to: a copy of
// `weights` that was made before is the unmerged model. Embeddings that part, as those that are adapted do, untie it.
absl::Status MergeAdapter(const LoraAdapter& adapter, ModelWeights& weights,
                          std::optional<c10::ScalarType> dtype = std::nullopt);

}  // namespace retort
