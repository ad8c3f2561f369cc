// The weights of a model in memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <array>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/config.h"
#include "model/quantized/quantise.h"
#include "model/quantized/quantized_matrix.h"
#include "model/tensor_source.h"

namespace retort {

// The linear modules that a layer may have; which it has, its config decides.
enum Projection {
  kQ,
  kK,
  kV,
  kQkv,  // q, k and v below one another
  kO,
  kQDown,   // latent attention: hidden -> q_lora_rank
  kQUp,     //                   q_lora_rank -> heads * head_dim
  kKvDown,  //                   hidden -> kv_lora_rank + qk_rope_head_dim
  kKvUp,    //                   kv_lora_rank -> heads * (qk_nope_head_dim + v_head_dim)
  kGate,
  kUp,
  kGateUp,  // gate and up below one another
  kDown,
  kSharedGate,  // shared experts
  kSharedUp,
  kSharedDown,
  kProjections,
};

// A module's name within its layer: "self_attn.q_proj".
absl::string_view ProjectionName(Projection projection);

struct Linear {
  at::Tensor weight;                // [out_features, in_features]; undefined where it is quantised
  at::Tensor bias;                  // [out_features], or undefined
  SharedQuantizedMatrix quantized;  // null, or the weight in 4 or 8 bits

  // [out_features, in_features] of `dtype`: the weight, or what the quantised one stands for, made for the call.
  at::Tensor Weight(c10::ScalarType dtype) const {
    return quantized != nullptr ? Dequantise(*quantized, dtype) : weight.to(dtype);
  }
};

// One routed expert. [intermediate, hidden], [intermediate, hidden], [hidden, intermediate].
struct Expert {
  at::Tensor gate, up, down;
};

// What a layer does not have is undefined.
struct LayerWeights {
  at::Tensor input_norm;           // [hidden]
  at::Tensor post_attention_norm;  // [hidden]
  std::array<Linear, kProjections> linears;
  at::Tensor q_norm, k_norm;          // [head_dim]
  at::Tensor q_down_norm;             // [q_lora_rank]
  at::Tensor kv_down_norm;            // [kv_lora_rank]
  at::Tensor router;                  // [experts, hidden]
  at::Tensor router_correction_bias;  // [experts]
  std::vector<Expert> experts;

  Linear& operator[](Projection projection) { return linears[projection]; }
  const Linear& operator[](Projection projection) const { return linears[projection]; }
};

struct ModelWeights {
  ModelConfig config;
  at::Tensor embed_tokens;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  at::Tensor final_norm;  // [hidden]
  at::Tensor lm_head;     // [vocab, hidden]; the same storage as embed_tokens when tied
};

// One tensor that a config asks for.
struct TensorPlace {
  std::string name;  // in the files
  std::vector<int64_t> shape;
  at::Tensor* tensor;
  Projection projection = kProjections;  // the module that it is the weight or bias of
  int64_t expert = -1;                   // the routed expert that it is part of
  bool vocabulary = false;               // a row for each token of the vocabulary
  Linear* weight_of = nullptr;           // the module, where the tensor is its weight
};

// Calls `visit` for every tensor of the model in its order, with `weights` sized as its config says. A tied lm_head is
// not visited. Stops at the first error.
absl::Status VisitTensors(ModelWeights& weights, const std::function<absl::Status(const TensorPlace&)>& visit);

// The linear modules of a layer that its config asks for, in the model's order.
struct ProjectionShape {
  Projection projection;
  int64_t out_features = 0;
  int64_t in_features = 0;
  bool bias = false;
};
std::vector<ProjectionShape> ProjectionsOf(const ModelConfig& config, int64_t layer);

// q, k and v (gate and up) each for itself: views of the rows where they are stored as one.
std::array<Linear, 3> SplitQkv(const ModelConfig& config, const LayerWeights& layer);
std::array<Linear, 2> SplitGateUp(const ModelConfig& config, const LayerWeights& layer);

// Whether any linear module is kept quantised.
bool HasQuantized(const ModelWeights& weights);

// What becomes of linear modules (not of embeddings, the head, norms, experts and their gate).
struct BaseQuantisation {
  // Modules that the files have in 4 or 8 bits stay so; otherwise they are widened on the way.
  bool keep_stored = false;
  // Where the folder is not quantised, all are as they are loaded, from `dtype`.
  std::optional<QuantiseOptions> quantise;
};

// Loads a folder's safetensors, single or sharded, tensor by tensor. Without `dtype` tensors keep the file's (and on
// the CPU alias the mapped file: read-only). Block-wise float8 and what bitsandbytes quantised is widened on the way
// (to `dtype`, else f32). Errors: kNotFound (a missing file or tensor, by name), kInvalidArgument (corrupt, or a shape
// that contradicts the config).
absl::StatusOr<ModelWeights> LoadWeights(const std::string& folder, std::optional<c10::ScalarType> dtype,
                                         c10::Device device, const BaseQuantisation& quantisation = {});

// One rank's part of a tensor-parallel model; reads no more of a matrix than it keeps. Errors: also those of
// ShardConfig.
absl::StatusOr<ModelWeights> LoadWeightsOfRank(const std::string& folder, std::optional<c10::ScalarType> dtype,
                                               c10::Device device, int rank, int size);

// The same from another source. `where` names it in errors. `config` may be one rank's part of `whole`, which is not
// quantised.
absl::StatusOr<ModelWeights> LoadWeightsFrom(TensorSource& source, const ModelConfig& whole, const ModelConfig& config,
                                             std::optional<c10::ScalarType> dtype, c10::Device device,
                                             const std::string& where, const BaseQuantisation& quantisation = {});

// Random weights (normal, std 0.02; norms 1) at a config's shapes, drawn on the device: for benchmarks and tests.
ModelWeights RandomWeights(const ModelConfig& config, c10::ScalarType dtype, c10::Device device, uint64_t seed);

// Every tensor by its name in the files, in the model's order; a tied lm_head is left out, quantised modules are
// undefined.
std::vector<std::pair<std::string, at::Tensor>> NamedTensors(const ModelWeights& weights);

// Every defined tensor, in place; a tied lm_head stays tied.
void ConvertWeights(ModelWeights& weights, const std::function<at::Tensor(const at::Tensor&)>& convert);

// Writes config.json, model.safetensors (sharded above 5 GB) and copies generation files from `source_folder` and the
// tokenizer's from there or, where one is given, from `tokenizer_folder`: a folder that transformers loads. Without a
// source folder only config.json is written, from the weights' config. `folder` must not exist; it appears whole or not
// at all.
absl::Status SaveModelFolder(const ModelWeights& weights, c10::ScalarType dtype, const std::string& source_folder,
                             const std::string& folder, const std::string& tokenizer_folder = "");

// SHA-256 (32 bytes) over the names and contents of config.json, generation_config.json, tokenizer files, chat template
// and safetensors. Content hashes are remembered in `cache_folder` by (path, size, mtime); empty: not remembered.
absl::StatusOr<std::string> ModelRevision(const std::string& folder, const std::string& cache_folder);

}  // namespace retort
