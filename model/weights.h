// The weights of a Llama-type model in memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config.h"

namespace retort {

// Matrices as stored: [out_features, in_features]. Biases are undefined tensors where the config has none.
struct LayerWeights {
  at::Tensor input_norm;           // [hidden]
  at::Tensor q_proj;               // [heads * head_dim, hidden]
  at::Tensor k_proj;               // [kv_heads * head_dim, hidden]
  at::Tensor v_proj;               // [kv_heads * head_dim, hidden]
  at::Tensor o_proj;               // [hidden, heads * head_dim]
  at::Tensor post_attention_norm;  // [hidden]
  at::Tensor gate_proj;            // [intermediate, hidden]
  at::Tensor up_proj;              // [intermediate, hidden]
  at::Tensor down_proj;            // [hidden, intermediate]
  at::Tensor q_bias, k_bias, v_bias, o_bias;
  at::Tensor gate_bias, up_bias, down_bias;
};

struct ModelWeights {
  ModelConfig config;
  at::Tensor embed_tokens;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  at::Tensor final_norm;  // [hidden]
  at::Tensor lm_head;     // [vocab, hidden]; the same storage as embed_tokens when tied
};

// Loads model.safetensors or the shards of model.safetensors.index.json, tensor by tensor. Without `dtype` tensors keep
// the file's (and on the CPU alias the mapped file: read-only). Errors: kNotFound (a missing file or tensor, by name),
// kInvalidArgument (corrupt, or a shape that contradicts the config).
absl::StatusOr<ModelWeights> LoadWeights(const std::string& folder, std::optional<c10::ScalarType> dtype,
                                         c10::Device device);

// Random weights (normal, std 0.02; norms 1) at a config's shapes: for benchmarks and tests.
ModelWeights RandomWeights(const ModelConfig& config, c10::ScalarType dtype, c10::Device device, uint64_t seed);

// Every tensor by its name in the files, in the model's order; a tied lm_head is left out.
std::vector<std::pair<std::string, at::Tensor>> NamedTensors(const ModelWeights& weights);

// Writes config.json, model.safetensors (sharded above 5 GB) and copies tokenizer and generation files from
// `source_folder`: a folder that transformers loads. Without a source
// folder only config.json is written, from the weights' config. `folder` must not exist; it appears whole or not at
// all.
absl::Status SaveModelFolder(const ModelWeights& weights, c10::ScalarType dtype, const std::string& source_folder,
                             const std::string& folder);

// SHA-256 (32 bytes) over the names and contents of config.json, generation_config.json, tokenizer files, chat template
// and safetensors. Content hashes are remembered in `cache_folder` by (path, size, mtime); empty: not remembered.
absl::StatusOr<std::string> ModelRevision(const std::string& folder, const std::string& cache_folder);

}  // namespace retort
