#include "bench/train_shapes.h"

#include <map>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace retort::bench {
namespace {

const std::map<std::string, nlohmann::json>& Shapes() {
  static const auto* const shapes =
      new std::map<std::string, nlohmann::json>{{"llama-3.1-8b",
                                                 {{"model_type", "llama"},
                                                  {"architectures", {"LlamaForCausalLM"}},
                                                  {"hidden_size", 4096},
                                                  {"intermediate_size", 14336},
                                                  {"num_hidden_layers", 32},
                                                  {"num_attention_heads", 32},
                                                  {"num_key_value_heads", 8},
                                                  {"vocab_size", 128256},
                                                  {"max_position_embeddings", 131072},
                                                  {"rope_theta", 500000.0},
                                                  {"rms_norm_eps", 1e-5},
                                                  {"tie_word_embeddings", false},
                                                  {"torch_dtype", "bfloat16"}}},
                                                {"qwen2.5-1.5b",
                                                 {{"model_type", "qwen2"},
                                                  {"architectures", {"Qwen2ForCausalLM"}},
                                                  {"hidden_size", 1536},
                                                  {"intermediate_size", 8960},
                                                  {"num_hidden_layers", 28},
                                                  {"num_attention_heads", 12},
                                                  {"num_key_value_heads", 2},
                                                  {"vocab_size", 151936},
                                                  {"max_position_embeddings", 131072},
                                                  {"rope_theta", 1000000.0},
                                                  {"rms_norm_eps", 1e-6},
                                                  {"tie_word_embeddings", true},
                                                  {"torch_dtype", "bfloat16"}}},
                                                {"phi-3-mini",
                                                 {{"model_type", "phi3"},
                                                  {"architectures", {"Phi3ForCausalLM"}},
                                                  {"hidden_size", 3072},
                                                  {"intermediate_size", 8192},
                                                  {"num_hidden_layers", 32},
                                                  {"num_attention_heads", 32},
                                                  {"num_key_value_heads", 32},
                                                  {"vocab_size", 32064},
                                                  {"max_position_embeddings", 4096},
                                                  {"original_max_position_embeddings", 4096},
                                                  {"rope_theta", 10000.0},
                                                  {"rms_norm_eps", 1e-5},
                                                  {"sliding_window", 2047},
                                                  {"tie_word_embeddings", false},
                                                  {"torch_dtype", "bfloat16"}}}};
  return *shapes;
}

}  // namespace

std::vector<std::string> ShapeNames() {
  std::vector<std::string> names;
  for (const auto& [name, config] : Shapes()) names.push_back(name);
  return names;
}

absl::StatusOr<ModelConfig> ShapeOf(const std::string& name) {
  const auto found = Shapes().find(name);
  if (found == Shapes().end()) {
    return absl::NotFoundError(
        absl::StrCat("no model \"", name, "\": a folder, or one of ", absl::StrJoin(ShapeNames(), ", ")));
  }
  return ParseModelConfig(found->second, nullptr, name);
}

}  // namespace retort::bench
