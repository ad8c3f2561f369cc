// Embeddings that grow: tokens that are added to a model's tokenizer, and adapters that brought some along.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/lora.h"
#include "model/tokenizer.h"
#include "model/weights.h"

namespace retort {

// Rows of the embedding and of the head under an adapter: those that it holds, else the model's.
int64_t VocabularyUnder(const LoraAdapter& adapter, const ModelConfig& model);

// The name in the base's files of an embedding that an adapter's file holds whole under `tensor`; empty where it is no
// such tensor.
std::string WholeEmbedding(absl::string_view tensor);

// Rows of the embeddings of a PEFT folder, without reading its tensors. Errors: those of opening
// adapter_model.safetensors, and kInvalidArgument (embeddings that contradict each other or have fewer rows than the
// model's).
absl::StatusOr<int64_t> VocabularyUnder(const std::string& adapter_folder, const ModelConfig& model);

// Makes embedding and head `rows` long, never shorter; new rows are zero. What is tied stays tied. Whole models only.
absl::Status GrowVocabulary(int64_t rows, ModelWeights& weights);

// Grows the model as its tokenizer has grown. The rows of new tokens, whether they are new too or were padding, become
// the mean of the rows of the tokens that the tokenizer had before, in f32, of the embedding and of an untied head.
absl::Status AddTokens(const TokenAdditions& additions, ModelWeights& weights);

// The modules that a new adapter must then train whole, beside its own.
void TrainEmbeddings(const ModelConfig& model, LoraConfig& config);

}  // namespace retort
