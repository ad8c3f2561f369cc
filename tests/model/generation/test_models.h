// Small random models for the tests of generation.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

#include "model/weights.h"

namespace retort {

struct TestModelOptions {
  int64_t hidden_size = 48;
  int64_t intermediate_size = 80;
  int64_t layers = 2;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t head_dim = 12;  // not a multiple of the panel width
  int64_t vocab_size = 101;
  bool tied = false;
  bool biases = true;
  bool llama3 = false;
  c10::ScalarType dtype = c10::ScalarType::Float;
};

inline ModelWeights MakeTestModel(const TestModelOptions& options) {
  at::manual_seed(7);
  ModelWeights model;
  ModelConfig& config = model.config;
  config.model_type = "llama";
  config.vocab_size = options.vocab_size;
  config.hidden_size = options.hidden_size;
  config.intermediate_size = options.intermediate_size;
  config.num_hidden_layers = options.layers;
  config.num_attention_heads = options.heads;
  config.num_key_value_heads = options.kv_heads;
  config.head_dim = options.head_dim;
  config.max_position_embeddings = 1024;
  config.tie_word_embeddings = options.tied;
  config.qkv_bias = config.o_bias = config.mlp_bias = options.biases;
  config.eos_token_ids = {1};
  if (options.llama3) {
    config.rope = {.type = RopeType::kLlama3, .factor = 8.0, .original_max_position_embeddings = 64};
  }
  FillDerived(config);
  const auto matrix = [&](int64_t rows, int64_t columns) {
    return (at::randn({rows, columns}) * 0.15).to(options.dtype);
  };
  const auto vector = [&](int64_t size, double mean) { return (at::randn({size}) * 0.1 + mean).to(options.dtype); };
  const auto bias = [&](int64_t size) { return options.biases ? vector(size, 0.0) : at::Tensor(); };
  const int64_t query = options.heads * options.head_dim;
  const int64_t kv = options.kv_heads * options.head_dim;
  model.embed_tokens = matrix(options.vocab_size, options.hidden_size) * 5;
  for (int64_t i = 0; i < options.layers; ++i) {
    LayerWeights layer;
    layer.input_norm = vector(options.hidden_size, 1.0);
    layer[kQ].weight = matrix(query, options.hidden_size);
    layer[kK].weight = matrix(kv, options.hidden_size);
    layer[kV].weight = matrix(kv, options.hidden_size);
    layer[kO].weight = matrix(options.hidden_size, query);
    layer.post_attention_norm = vector(options.hidden_size, 1.0);
    layer[kGate].weight = matrix(options.intermediate_size, options.hidden_size);
    layer[kUp].weight = matrix(options.intermediate_size, options.hidden_size);
    layer[kDown].weight = matrix(options.hidden_size, options.intermediate_size);
    layer[kQ].bias = bias(query);
    layer[kK].bias = bias(kv);
    layer[kV].bias = bias(kv);
    layer[kO].bias = bias(options.hidden_size);
    layer[kGate].bias = bias(options.intermediate_size);
    layer[kUp].bias = bias(options.intermediate_size);
    layer[kDown].bias = bias(options.hidden_size);
    model.layers.push_back(layer);
  }
  model.final_norm = vector(options.hidden_size, 1.0);
  model.lm_head = options.tied ? model.embed_tokens : matrix(options.vocab_size, options.hidden_size);
  return model;
}

}  // namespace retort
