#include "model/parallel/shard.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"

namespace retort {
namespace {

struct Range {
  int64_t first = 0;
  int64_t count = 0;
};

Range PartOf(int64_t total, int rank, int size) {
  const int64_t first = total * rank / size;
  return {first, total * (rank + 1) / size - first};
}

// The KV head of each KV head of the part, for `heads` queries from `first` on.
std::vector<int64_t> KvHeads(const ModelConfig& whole, Range queries) {
  const int64_t group = whole.num_attention_heads / whole.num_key_value_heads;
  std::vector<int64_t> heads;
  if (queries.count % group == 0 || group % queries.count == 0) {
    for (int64_t q = queries.first; q < queries.first + queries.count; q += std::min(group, queries.count)) {
      heads.push_back(q / group);
    }
    return heads;
  }
  // A rank's queries do not fall into whole groups: each query gets a copy of its own.
  for (int64_t q = queries.first; q < queries.first + queries.count; ++q) heads.push_back(q / group);
  return heads;
}

Range Queries(const ModelConfig& whole, const TensorShard& shard) {
  return PartOf(whole.num_attention_heads, shard.rank, shard.size);
}

at::Tensor Rows(const at::Tensor& stored, Range heads, int64_t width) {
  return stored.narrow(0, heads.first * width, heads.count * width);
}

// Rows of the listed heads, from row `base` on.
at::Tensor HeadRows(const at::Tensor& stored, int64_t base, const std::vector<int64_t>& heads, int64_t width) {
  std::vector<at::Tensor> parts;
  parts.reserve(heads.size());
  for (const int64_t head : heads) parts.push_back(stored.narrow(0, base + head * width, width));
  return parts.size() == 1 ? parts[0] : at::cat(parts, 0);
}

at::Tensor FusedQkv(const ModelConfig& whole, const TensorShard& shard, const at::Tensor& stored) {
  const Range queries = Queries(whole, shard);
  const std::vector<int64_t> kv = KvHeads(whole, queries);
  const int64_t q_rows = whole.num_attention_heads * whole.head_dim;
  const int64_t k_rows = whole.num_key_value_heads * whole.head_dim;
  return at::cat({Rows(stored, queries, whole.head_dim), HeadRows(stored, q_rows, kv, whole.head_dim),
                  HeadRows(stored, q_rows + k_rows, kv, whole.head_dim)},
                 0);
}

// A module's weight or bias. A bias after a sum over ranks is the first rank's.
at::Tensor SliceModule(const ModelConfig& whole, const TensorShard& shard, const TensorPlace& place,
                       const at::Tensor& stored) {
  const bool bias = stored.dim() == 1;
  const auto inner = [&](int64_t total) { return PartOf(total, shard.rank, shard.size); };
  const auto columns = [&](Range range, int64_t width) {
    if (bias) return shard.rank == 0 ? stored : at::zeros_like(stored);
    return stored.narrow(1, range.first * width, range.count * width);
  };
  switch (place.projection) {
    case kQ:
    case kQUp:
      return Rows(stored, Queries(whole, shard), whole.head_dim);
    case kK:
    case kV:
      return HeadRows(stored, 0, KvHeads(whole, Queries(whole, shard)), whole.head_dim);
    case kQkv:
      return FusedQkv(whole, shard, stored);
    case kKvUp:
      return Rows(stored, Queries(whole, shard), whole.mla->qk_nope_head_dim + whole.mla->v_head_dim);
    case kO:
      return columns(Queries(whole, shard), whole.value_head_dim());
    case kGate:
    case kUp:
      return Rows(stored, inner(whole.intermediate_size), 1);
    case kGateUp: {
      const Range range = inner(whole.intermediate_size);
      return at::cat({Rows(stored, range, 1), Rows(stored, {whole.intermediate_size + range.first, range.count}, 1)},
                     0);
    }
    case kDown:
      return columns(inner(whole.intermediate_size), 1);
    case kSharedGate:
    case kSharedUp:
      return Rows(stored, inner(whole.moe->shared_intermediate_size), 1);
    case kSharedDown:
      return columns(inner(whole.moe->shared_intermediate_size), 1);
    case kQDown:
    case kKvDown:
    case kProjections:
      return stored;
  }
  return stored;
}

}  // namespace

absl::StatusOr<ModelConfig> ShardConfig(const ModelConfig& whole, int rank, int size) {
  RETORT_CHECK(size >= 1 && rank >= 0 && rank < size);
  if (whole.num_attention_heads % size != 0) {
    return absl::InvalidArgumentError(absl::StrCat("tensor_parallel_size ", size, " does not divide the model's ",
                                                   whole.num_attention_heads,
                                                   " attention heads (config.json: num_attention_heads)"));
  }
  if (whole.vocab_size < size) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor_parallel_size ", size, " exceeds the model's vocabulary of ", whole.vocab_size));
  }
  ModelConfig part = whole;
  part.shard = TensorShard{.rank = rank, .size = size};
  const Range queries = Queries(whole, *part.shard);
  part.num_attention_heads = queries.count;
  part.num_key_value_heads =
      whole.mla.has_value() ? queries.count : static_cast<int64_t>(KvHeads(whole, queries).size());
  part.intermediate_size = PartOf(whole.intermediate_size, rank, size).count;
  const Range vocabulary = PartOf(whole.vocab_size, rank, size);
  part.shard->vocab_first = vocabulary.first;
  part.shard->vocab_count = vocabulary.count;
  if (whole.moe.has_value()) {
    part.moe->shared_intermediate_size = PartOf(whole.moe->shared_intermediate_size, rank, size).count;
    const Range experts = PartOf(whole.moe->num_experts, rank, size);
    part.shard->expert_first = experts.first;
    part.shard->expert_count = experts.count;
  }
  return part;
}

bool IsExpertOf(const ModelConfig& part, const TensorPlace& place) {
  const TensorShard& shard = *part.shard;
  return place.expert < 0 ||
         (place.expert >= shard.expert_first && place.expert < shard.expert_first + shard.expert_count);
}

absl::StatusOr<ModelWeights> ShardWeights(const ModelWeights& whole, int rank, int size) {
  ModelWeights part;
  ASSIGN_OR_RETURN(part.config, ShardConfig(whole.config, rank, size));
  std::map<std::string, at::Tensor> stored;
  for (auto& [name, tensor] : NamedTensors(whole)) stored.emplace(name, tensor);
  RETURN_IF_ERROR(VisitTensors(part, [&](const TensorPlace& place) {
    const at::Tensor slice = SliceOf(whole.config, part.config, place, stored.at(place.name));
    // Not a view: the whole may then go.
    if (slice.defined()) *place.tensor = slice.clone(at::MemoryFormat::Contiguous);
    return absl::OkStatus();
  }));
  if (part.config.tie_word_embeddings) part.lm_head = part.embed_tokens;
  return part;
}

at::Tensor SliceOf(const ModelConfig& whole, const ModelConfig& part, const TensorPlace& place,
                   const at::Tensor& stored) {
  const TensorShard& shard = *part.shard;
  if (place.expert >= 0) return IsExpertOf(part, place) ? stored : at::Tensor();
  if (place.vocabulary) return stored.narrow(0, shard.vocab_first, shard.vocab_count);
  return SliceModule(whole, shard, place, stored);
}

}  // namespace retort
