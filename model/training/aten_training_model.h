// TrainingModel through ATen operators: any device, f32 or bf16.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "model/training_model.h"

namespace retort {

// As TrainingModel::Create, whose checks have passed.
absl::StatusOr<std::unique_ptr<TrainingModel>> MakeAtenTrainingModel(ModelWeights weights, const LoraAdapter& adapter,
                                                                     const TrainingModelOptions& options);

}  // namespace retort
