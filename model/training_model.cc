#include "model/training_model.h"

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "model/torch_status.h"
#include "model/training/aten_training_model.h"
#include "model/training/cpu_training_model.h"
#include "model/training/flat_adapter.h"
#include "model/training/fused_training_model.h"

namespace retort {

absl::StatusOr<std::unique_ptr<TrainingModel>> TrainingModel::Create(ModelWeights weights, const LoraAdapter& adapter,
                                                                     const TrainingModelOptions& options) {
  if (options.compute_dtype != at::kFloat && options.compute_dtype != at::kBFloat16) {
    return absl::InvalidArgumentError(
        absl::StrCat("training computes in float32 or bfloat16, not ", c10::toString(options.compute_dtype)));
  }
  if (weights.embed_tokens.scalar_type() != options.compute_dtype) {
    return absl::InvalidArgumentError(absl::StrCat("training in ", c10::toString(options.compute_dtype),
                                                   " needs weights of that type, these are ",
                                                   c10::toString(weights.embed_tokens.scalar_type())));
  }
  if (!weights.config.activation_dropout.empty()) {
    return absl::UnimplementedError(absl::StrCat("config.json: ", weights.config.activation_dropout,
                                                 " above 0 is not supported in training; set it to 0 to train "
                                                 "without it, as most recipes do"));
  }
  if (options.lora_dropout < 0.0 || options.lora_dropout >= 1.0) {
    return absl::InvalidArgumentError(
        absl::StrCat("lora_dropout must be at least 0 and below 1, not ", options.lora_dropout));
  }
  const bool embedding = adapter.modules.contains(std::string(kEmbeddingModule));
  const bool head = adapter.modules.contains(std::string(kHeadModule));
  if (head && adapter.config.use_dora && options.lora_dropout > 0.0) {
    return absl::UnimplementedError(
        "lora_dropout: with use_dora it is not supported for lm_head; set it to 0 or take lm_head out of "
        "target_modules");
  }
  if (embedding && head && adapter.config.ensure_weight_tying) {
    return absl::UnimplementedError(
        "ensure_weight_tying: adapters of embed_tokens and lm_head cannot be trained as one; train them apart "
        "(ensure_weight_tying: false) or whole (modules_to_save)");
  }
  RETURN_IF_ERROR(PrepareBase(adapter, weights));
  return CatchTorchErrors("training model", [&]() -> absl::StatusOr<std::unique_ptr<TrainingModel>> {
    ASSIGN_OR_RETURN(FlatAdapter flat, FlatAdapter::Create(weights.config, adapter, weights.embed_tokens.device()));
    const bool fused = FusedTrainingSupports(weights, flat);
    if (options.gradient_checkpointing == GradientCheckpointing::kAlways && !fused) {
      return absl::UnimplementedError(
          "gradient checkpointing is not supported with DoRA, adapted embeddings, whole modules, quantised weights, "
          "latent attention or experts; leave it out, or train without those");
    }
    if (fused && (weights.embed_tokens.is_cuda() || options.gradient_checkpointing == GradientCheckpointing::kAlways)) {
      return MakeFusedTrainingModel(std::move(weights), adapter, options);
    }
    const bool packed = weights.embed_tokens.is_cpu() && options.compute_dtype == at::kFloat &&
                        CpuTrainingSupports(weights.config) && flat.plain() && !HasQuantized(weights);
    return packed ? MakeCpuTrainingModel(std::move(weights), adapter, options)
                  : MakeAtenTrainingModel(std::move(weights), adapter, options);
  });
}

}  // namespace retort
