// Weights, adapter and tokenizer of what generates.
#pragma once

#include <c10/core/ScalarType.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "model/tokenizer.h"
#include "model/weights.h"

namespace retort {

struct ModelOptions {
  std::string model;    // HF folder or GGUF file
  std::string adapter;  // PEFT folder, merged in f32, a module at a time; empty: none
  std::string dtype;    // "float32" | "bfloat16"; empty: bfloat16 on a GPU, float32 on a CPU
  std::string device = "auto";
  // Keeps linear modules in 4 bits (NF4 with double quantisation) or 8, or as a quantised folder has them. Without
  // either such a folder is widened. At most one of the two. Where there is an adapter, or ranks share the model, they
  // are widened again: the values are the same, the memory is not saved.
  bool load_in_4bit = false;
  bool load_in_8bit = false;
  absl::Time now = absl::Now();  // for chat templates, as in Tokenizer::Load
  // A folder without tokenizer files will do: for work on token ids.
  bool tokenizer_optional = false;
  // Where the configs name no EOS the tokenizer's is taken: generation that never stops serves nobody's job.
  bool eos_from_tokenizer = true;
  int tensor_parallel_size = 1;  // ranks that share the model; `tensor_parallel_rank` is loaded
  int tensor_parallel_rank = 0;  // on GPUs also the GPU that is used
};

struct LoadedModel {
  ModelWeights weights;  // on the device, the rank's part; config.eos_token_ids as ModelOptions says
  c10::ScalarType compute_dtype = c10::ScalarType::Float;
  std::unique_ptr<Tokenizer> tokenizer;  // null: the folder has none, and none was asked for
};

// Errors: kNotFound, kInvalidArgument, kUnimplemented (the folder; names the file and key), kFailedPrecondition
// (device).
absl::StatusOr<LoadedModel> LoadModel(const ModelOptions& options);

}  // namespace retort
