// A rank's part of a tensor-parallel model (Shoeybi et al. 2019, arXiv:1909.08053): heads, inner dimensions and the
// vocabulary are cut between the ranks, experts are dealt out whole, norms and latent projections are everywhere.
#pragma once

#include <ATen/core/Tensor.h>

#include "absl/status/statusor.h"
#include "model/weights.h"

namespace retort {

// The config of one rank's part: its heads, inner sizes, vocabulary rows and experts (config.shard). Where there are
// fewer KV heads than ranks, ranks share a copy of one. Errors: kInvalidArgument (heads that the ranks cannot share
// evenly: says which key).
absl::StatusOr<ModelConfig> ShardConfig(const ModelConfig& whole, int rank, int size);

// The part of a stored tensor that the place of a rank's model takes; a view where it can be one. Undefined: another
// rank's. `part` is ShardConfig's of `whole`.
at::Tensor SliceOf(const ModelConfig& whole, const ModelConfig& part, const TensorPlace& place,
                   const at::Tensor& stored);

// Whether the place is not an expert's, or that of one which this rank has.
bool IsExpertOf(const ModelConfig& part, const TensorPlace& place);

// The part of a model that is in memory. Errors: as ShardConfig.
absl::StatusOr<ModelWeights> ShardWeights(const ModelWeights& whole, int rank, int size);

}  // namespace retort
