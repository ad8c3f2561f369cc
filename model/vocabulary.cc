#include "model/vocabulary.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/check.h"
#include "common/status.h"
#include "model/safetensors.h"
#include "model/torch_status.h"

namespace retort {
namespace {

constexpr const char* kEmbeddings = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";
constexpr int64_t kRowsAtOnce = 4096;

at::Tensor Grown(const at::Tensor& matrix, int64_t rows) {
  return at::cat({matrix, at::zeros({rows - matrix.size(0), matrix.size(1)}, matrix.options())}, 0);
}

// In double precision, rounded to f32 once: the same whatever the number of threads.
at::Tensor MeanOf(const at::Tensor& matrix, const std::vector<int32_t>& ids) {
  at::Tensor sum = at::zeros({matrix.size(1)}, matrix.options().dtype(at::kDouble));
  int64_t count = 0;
  for (size_t first = 0; first < ids.size(); first += kRowsAtOnce) {
    std::vector<int64_t> slice;
    for (size_t i = first; i < std::min(ids.size(), first + kRowsAtOnce); ++i) {
      if (ids[i] < matrix.size(0)) slice.push_back(ids[i]);
    }
    if (slice.empty()) continue;
    const at::Tensor index =
        at::from_blob(slice.data(), {static_cast<int64_t>(slice.size())}, at::kLong).to(matrix.device());
    sum += matrix.index_select(0, index).to(at::kDouble).sum(0);
    count += static_cast<int64_t>(slice.size());
  }
  return (sum / static_cast<double>(std::max<int64_t>(count, 1))).to(at::kFloat);
}

}  // namespace

int64_t VocabularyUnder(const LoraAdapter& adapter, const ModelConfig& model) {
  for (const auto* tensors : {&adapter.full, &adapter.replaced}) {
    for (const char* name : {kEmbeddings, kHead}) {
      const auto found = tensors->find(name);
      if (found != tensors->end()) return found->second.size(0);
    }
  }
  return model.vocab_size;
}

std::string WholeEmbedding(absl::string_view tensor) {
  if (!absl::ConsumePrefix(&tensor, "base_model.model.")) return "";
  for (const char* name : {kEmbeddings, kHead}) {
    // PEFT nests what is adapted in what adapts it.
    const absl::string_view module = absl::StripSuffix(name, ".weight");
    if (tensor == name || tensor == absl::StrCat(module, ".base_layer.weight")) return name;
  }
  return "";
}

absl::StatusOr<int64_t> VocabularyUnder(const std::string& adapter_folder, const ModelConfig& model) {
  const std::string path = absl::StrCat(adapter_folder, "/adapter_model.safetensors");
  ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  std::optional<int64_t> embeddings, head;
  for (const std::string& name : file.names()) {
    const std::string whole = WholeEmbedding(name);
    if (whole.empty()) continue;
    ASSIGN_OR_RETURN(const at::Tensor tensor, file.Get(name));
    if (tensor.dim() != 2) return absl::InvalidArgumentError(absl::StrCat(path, ": \"", name, "\" is no matrix"));
    (whole == kHead ? head : embeddings) = tensor.size(0);
  }
  if (!embeddings.has_value() && !head.has_value()) return model.vocab_size;
  const int64_t rows = embeddings.has_value() ? *embeddings : *head;
  if (head.has_value() && *head != rows) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": embed_tokens has ", rows, " rows, lm_head ", *head, "; they must have as many"));
  }
  if (rows < model.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": its embeddings have ", rows, " rows, the model's ",
                                                   model.vocab_size,
                                                   " (vocab_size in config.json); was it made for another base?"));
  }
  if (rows > model.vocab_size && !(embeddings.has_value() && head.has_value()) && !model.tie_word_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": has ", rows, " rows of ", embeddings.has_value() ? "embed_tokens" : "lm_head", ", the model ",
        model.vocab_size, ", and none of ", embeddings.has_value() ? "lm_head" : "embed_tokens",
        "; save it with save_embedding_layers=True or use it with the resized base"));
  }
  return rows;
}

absl::Status GrowVocabulary(int64_t rows, ModelWeights& weights) {
  RETORT_CHECK(!weights.config.shard.has_value());
  if (rows <= weights.config.vocab_size) return absl::OkStatus();
  return CatchTorchErrors("grow the embeddings", [&]() -> absl::Status {
    weights.embed_tokens = Grown(weights.embed_tokens, rows);
    weights.lm_head = weights.config.tie_word_embeddings ? weights.embed_tokens : Grown(weights.lm_head, rows);
    weights.config.vocab_size = rows;
    return absl::OkStatus();
  });
}

absl::Status AddTokens(const TokenAdditions& additions, ModelWeights& weights) {
  if (!additions.any_new()) return absl::OkStatus();
  const int64_t before = weights.config.vocab_size;
  std::vector<int64_t> fresh;
  for (const TokenAdditions::Token& token : additions.tokens) {
    if (!token.known) fresh.push_back(token.id);
  }
  for (int64_t id = before; id < additions.rows; ++id) {
    if (std::find(fresh.begin(), fresh.end(), id) == fresh.end()) fresh.push_back(id);
  }
  return CatchTorchErrors("add tokens", [&]() -> absl::Status {
    const auto filled = [&](const at::Tensor& matrix) {
      const at::Tensor mean = MeanOf(matrix, additions.ids_before);
      at::Tensor grown = additions.rows > before ? Grown(matrix, additions.rows) : matrix.clone();
      for (const int64_t id : fresh) grown.select(0, id).copy_(mean);
      return grown;
    };
    weights.embed_tokens = filled(weights.embed_tokens);
    weights.lm_head = weights.config.tie_word_embeddings ? weights.embed_tokens : filled(weights.lm_head);
    weights.config.vocab_size = std::max(before, additions.rows);
    return absl::OkStatus();
  });
}

void TrainEmbeddings(const ModelConfig& model, LoraConfig& config) {
  for (const char* module : {"embed_tokens", "lm_head"}) {
    auto& saved = config.modules_to_save;
    if (std::find(saved.begin(), saved.end(), module) == saved.end()) saved.push_back(module);
  }
  config.ensure_weight_tying = model.tie_word_embeddings;
}

}  // namespace retort
