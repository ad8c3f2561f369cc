// Between a GGUF file's metadata and a Hugging Face folder's config.json and generation_config.json.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/gguf/families.h"
#include "model/gguf/file.h"
#include "model/gguf/writer.h"

namespace retort::gguf {

// The config.json that the same model's folder has, with everything the file states; "torch_dtype" is left to whoever
// writes tensors. Rope scaling comes from the metadata, and from the tensors of factors where it lies there (Llama 3,
// longrope). Errors: kInvalidArgument, kNotFound (a key, named), kUnimplemented (an architecture or rope scaling).
absl::StatusOr<nlohmann::json> ConfigFromGguf(const File& file);

// bos, eos (with what else ends a turn) and pad ids.
absl::StatusOr<nlohmann::json> GenerationConfigFromGguf(const File& file);

// What the arrangement of tensors depends on; zero where a family has no such thing.
struct Geometry {
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t experts = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t kv_lora_rank = 0;
  int64_t q_lora_rank = 0;
  int64_t dense_layers = 0;  // the first ones, without experts
  int64_t shared_experts = 0;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  bool tied = false;
};
// `source` names the config in errors ("model/config.json").
absl::StatusOr<Geometry> GeometryOf(const nlohmann::json& config, const std::string& source);

// A tensor that stands for part of a config: the factors by which rotary frequencies are divided.
struct FactorTensor {
  std::string name;
  std::vector<float> values;
};

// Adds `<architecture>.*` to `metadata`, as llama.cpp's converter does. Errors: kInvalidArgument, kUnimplemented (what
// a GGUF file of this family cannot say).
absl::StatusOr<std::vector<FactorTensor>> ConfigToMetadata(const nlohmann::json& config, const std::string& source,
                                                           const Family& family, Metadata& metadata,
                                                           std::vector<std::string>& warnings);

// The double that a float was written for: 1e-05 for the float nearest to it.
double ShortestDouble(float value);

}  // namespace retort::gguf
