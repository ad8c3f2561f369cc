// TrainingModel on the CPU in f32: packed weights, fused passes over blocks of rows, its own threads.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "model/training_model.h"

namespace retort {

// Whether the packed CPU path computes what this config describes.
bool CpuTrainingSupports(const ModelConfig& config);

// As TrainingModel::Create, whose checks have passed, for f32 weights on the CPU. Takes as many threads as
// at::get_num_threads() says; results do not depend on their number.
absl::StatusOr<std::unique_ptr<TrainingModel>> MakeCpuTrainingModel(ModelWeights weights, const LoraAdapter& adapter,
                                                                    const TrainingModelOptions& options);

}  // namespace retort
