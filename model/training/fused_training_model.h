// TrainingModel with a backward pass written by hand for LoRA over frozen weights: no gradient, no copy and no pass
// that they do not need. docs/architecture.md, "A training step", has its tapes and its memory.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "model/training/flat_adapter.h"
#include "model/training_model.h"

namespace retort {

// Whether it computes this model and adapter: grouped-query attention, SwiGLU, A and B alone (no DoRA, biases, whole
// modules or experts), nothing quantised.
bool FusedTrainingSupports(const ModelWeights& weights, const FlatAdapter& adapter);

// As TrainingModel::Create, whose checks have passed, and FusedTrainingSupports. Any device; takes the place of the
// weights' matrices layer by layer, so that `weights` should be the only ones to hold them.
absl::StatusOr<std::unique_ptr<TrainingModel>> MakeFusedTrainingModel(ModelWeights weights, const LoraAdapter& adapter,
                                                                      const TrainingModelOptions& options);

}  // namespace retort
