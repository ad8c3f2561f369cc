// What a model folder says about its size, read from config.json and the safetensors headers alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/spec/local_checks.h"

namespace retort::cli {

struct ModelFacts {
  int64_t parameters = 0;
  int64_t weight_bytes = 0;  // as stored
  int64_t layers = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t attention_heads = 0;
  int64_t key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_positions = 0;
  bool tied = false;                // one matrix is embedding and head
  std::vector<TensorInfo> tensors;  // all
  std::vector<TensorInfo> linears;  // two-dimensional weights of the layers: what LoRA can adapt
  int64_t linear_parameters = 0;    // of all `linears`
  int64_t largest_linear = 0;       // parameters
  // Of those `linears` that bitsandbytes quantised, whose shapes above are those of the matrices that they stand for.
  int64_t quantised_parameters = 0;
  int64_t quantised_bytes = 0;  // with their scales

  // Parameters of an adapter of rank `r`: r * (in + out) for every linear, embedding and head whose module is named in
  // `target_modules`, or whose whole name matches `pattern` where there is one, or for all linears.
  int64_t LoraParameters(int64_t r, const std::vector<std::string>& target_modules,
                         const std::string& pattern = "") const;
  // Parameters of the modules whose names end in one of `modules`, as PEFT's modules_to_save are; the embeddings, with
  // `rows` where that is more than they have. `together`: tied embeddings are trained as one.
  int64_t WholeParameters(const std::vector<std::string>& modules, int64_t rows, bool together) const;
};

// Errors: kNotFound, kInvalidArgument (config.json lacks a size, a damaged file).
absl::StatusOr<ModelFacts> ReadModelFacts(const std::string& folder);

}  // namespace retort::cli
