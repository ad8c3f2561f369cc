#include "model/weights.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/file.h"
#include "common/json.h"
#include "common/status.h"
#include "model/safetensors.h"
#include "model/torch_status.h"

namespace retort {
namespace {

constexpr size_t kMaxShards = 10'000;

// The files of a model folder, opened when a tensor of theirs is first asked for.
class TensorSource {
 public:
  static absl::StatusOr<TensorSource> Open(const std::string& folder);
  absl::StatusOr<at::Tensor> Get(const std::string& name);
  bool Has(const std::string& name) const { return single_ ? single_->Has(name) : file_of_.contains(name); }

 private:
  std::string folder_;
  std::optional<SafetensorsFile> single_;
  std::map<std::string, std::string> file_of_;  // tensor -> shard
  std::map<std::string, SafetensorsFile> shards_;
};

absl::StatusOr<TensorSource> TensorSource::Open(const std::string& folder) {
  TensorSource source;
  source.folder_ = folder;
  const std::string single = absl::StrCat(folder, "/model.safetensors");
  const std::string index_path = absl::StrCat(single, ".index.json");
  std::error_code error;
  if (std::filesystem::exists(single, error)) {
    ASSIGN_OR_RETURN(source.single_, SafetensorsFile::Open(single));
    return source;
  }
  if (!std::filesystem::exists(index_path, error)) {
    return absl::NotFoundError(absl::StrCat(
        "no weights in ", folder,
        ": neither model.safetensors nor model.safetensors.index.json is there; give a Hugging Face folder "
        "with safetensors weights"));
  }
  ASSIGN_OR_RETURN(const nlohmann::json index, ReadJsonFile(index_path));
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map is missing or no object"));
  }
  for (const auto& [name, file] : index["weight_map"].items()) {
    if (!file.is_string()) {
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map.", name, " is no file name"));
    }
    const auto path = JoinBelow(folder, file.get<std::string>());
    if (!path.ok()) return WithContext(path.status(), absl::StrCat(index_path, ": weight_map.", name));
    source.file_of_[name] = *path;
  }
  return source;
}

absl::StatusOr<at::Tensor> TensorSource::Get(const std::string& name) {
  if (single_) return single_->Get(name);
  const auto file = file_of_.find(name);
  if (file == file_of_.end()) {
    return absl::NotFoundError(absl::StrCat(folder_, "/model.safetensors.index.json: no tensor \"", name, "\""));
  }
  auto shard = shards_.find(file->second);
  if (shard == shards_.end()) {
    if (shards_.size() >= kMaxShards) {
      return absl::InvalidArgumentError(absl::StrCat(folder_, ": over ", kMaxShards, " shards"));
    }
    ASSIGN_OR_RETURN(SafetensorsFile opened, SafetensorsFile::Open(file->second));
    shard = shards_.emplace(file->second, std::move(opened)).first;
  }
  return shard->second.Get(name);
}

using Visitor = std::function<absl::Status(const std::string& name, const std::vector<int64_t>& shape, at::Tensor&)>;

// Calls `visit` for every tensor of the model that its config asks for, by its name in the files, in the model's order.
// A tied lm_head is not visited.
absl::Status VisitTensors(ModelWeights& weights, const Visitor& visit) {
  const ModelConfig& config = weights.config;
  const int64_t hidden = config.hidden_size;
  const int64_t queries = config.num_attention_heads * config.head_dim;
  const int64_t keys = config.num_key_value_heads * config.head_dim;
  const int64_t inner = config.intermediate_size;
  RETURN_IF_ERROR(visit("model.embed_tokens.weight", {config.vocab_size, hidden}, weights.embed_tokens));
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    LayerWeights& layer = weights.layers[i];
    const std::string prefix = absl::StrCat("model.layers.", i, ".");
    const auto linear = [&](const char* name, int64_t out, int64_t in, at::Tensor& weight, bool has_bias,
                            at::Tensor& bias) -> absl::Status {
      RETURN_IF_ERROR(visit(absl::StrCat(prefix, name, ".weight"), {out, in}, weight));
      return has_bias ? visit(absl::StrCat(prefix, name, ".bias"), {out}, bias) : absl::OkStatus();
    };
    RETURN_IF_ERROR(visit(prefix + "input_layernorm.weight", {hidden}, layer.input_norm));
    const bool bias = config.attention_bias;
    RETURN_IF_ERROR(linear("self_attn.q_proj", queries, hidden, layer.q_proj, bias, layer.q_bias));
    RETURN_IF_ERROR(linear("self_attn.k_proj", keys, hidden, layer.k_proj, bias, layer.k_bias));
    RETURN_IF_ERROR(linear("self_attn.v_proj", keys, hidden, layer.v_proj, bias, layer.v_bias));
    RETURN_IF_ERROR(linear("self_attn.o_proj", hidden, queries, layer.o_proj, bias, layer.o_bias));
    RETURN_IF_ERROR(visit(prefix + "post_attention_layernorm.weight", {hidden}, layer.post_attention_norm));
    RETURN_IF_ERROR(linear("mlp.gate_proj", inner, hidden, layer.gate_proj, config.mlp_bias, layer.gate_bias));
    RETURN_IF_ERROR(linear("mlp.up_proj", inner, hidden, layer.up_proj, config.mlp_bias, layer.up_bias));
    RETURN_IF_ERROR(linear("mlp.down_proj", hidden, inner, layer.down_proj, config.mlp_bias, layer.down_bias));
  }
  RETURN_IF_ERROR(visit("model.norm.weight", {hidden}, weights.final_norm));
  if (config.tie_word_embeddings) return absl::OkStatus();
  return visit("lm_head.weight", {config.vocab_size, hidden}, weights.lm_head);
}

bool IsFloat(c10::ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble;
}

}  // namespace

absl::StatusOr<ModelWeights> LoadWeights(const std::string& folder, std::optional<c10::ScalarType> dtype,
                                         c10::Device device) {
  ModelWeights weights;
  ASSIGN_OR_RETURN(weights.config, LoadModelConfig(folder));
  ASSIGN_OR_RETURN(TensorSource source, TensorSource::Open(folder));
  weights.layers.resize(static_cast<size_t>(weights.config.num_hidden_layers));
  const auto load = [&](const std::string& name, const std::vector<int64_t>& shape,
                        at::Tensor& tensor) -> absl::Status {
    ASSIGN_OR_RETURN(const at::Tensor stored, source.Get(name));
    if (stored.sizes() != at::IntArrayRef(shape)) {
      return absl::InvalidArgumentError(absl::StrCat(folder, ": tensor \"", name, "\" has shape [",
                                                     absl::StrJoin(stored.sizes(), ", "), "], config.json asks for [",
                                                     absl::StrJoin(shape, ", "), "]"));
    }
    if (!IsFloat(stored.scalar_type())) {
      return absl::InvalidArgumentError(absl::StrCat(folder, ": tensor \"", name, "\" is stored as ",
                                                     c10::toString(stored.scalar_type()),
                                                     "; only floating-point weights are supported"));
    }
    return CatchTorchErrors(absl::StrCat(folder, ": load ", name), [&]() -> absl::Status {
      tensor = stored.to(device, dtype.value_or(stored.scalar_type()));
      return absl::OkStatus();
    });
  };
  RETURN_IF_ERROR(VisitTensors(weights, load));
  if (weights.config.tie_word_embeddings) weights.lm_head = weights.embed_tokens;
  return weights;
}

ModelWeights RandomWeights(const ModelConfig& config, c10::ScalarType dtype, c10::Device device, uint64_t seed) {
  ModelWeights weights;
  weights.config = config;
  weights.config.dtype = dtype;
  weights.layers.resize(static_cast<size_t>(config.num_hidden_layers));
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const auto draw = [&](const std::string& name, const std::vector<int64_t>& shape, at::Tensor& tensor) {
    if (name.ends_with("norm.weight")) {
      tensor = at::ones(shape, at::TensorOptions(dtype).device(device));
    } else if (name.ends_with(".bias")) {
      tensor = at::zeros(shape, at::TensorOptions(dtype).device(device));
    } else {
      tensor = at::empty(shape, at::kFloat).normal_(0.0, 0.02, generator).to(device, dtype);
    }
    return absl::OkStatus();
  };
  VisitTensors(weights, draw).IgnoreError();
  if (config.tie_word_embeddings) weights.lm_head = weights.embed_tokens;
  return weights;
}

std::vector<std::pair<std::string, at::Tensor>> NamedTensors(const ModelWeights& weights) {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  ModelWeights shallow = weights;
  VisitTensors(shallow, [&](const std::string& name, const std::vector<int64_t>&, at::Tensor& tensor) {
    tensors.emplace_back(name, tensor);
    return absl::OkStatus();
  }).IgnoreError();
  return tensors;
}

}  // namespace retort
