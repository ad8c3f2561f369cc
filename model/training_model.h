// Forward and backward of a frozen model with a trainable adapter.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/lora.h"
#include "model/weights.h"

namespace retort {

// Samples laid end to end, no padding. Attention and positions start anew at each sample.
struct MicroBatch {
  std::vector<int32_t> input_ids;  // [tokens]
  std::vector<int32_t>
      labels;  // [tokens], not shifted: position i predicts labels[i + 1] of the same sample; kIgnoreLabel elsewhere
  std::vector<int64_t> sequence_offsets;  // [samples + 1], first 0, last `tokens`
};

struct LossSum {
  double loss = 0.0;           // sum of -ln p over trained tokens
  int64_t trained_tokens = 0;  // labels that count: not ignored and not a sample's first
};

// Where a trainable tensor lies in the flat buffers.
struct ParameterSlice {
  std::string name;  // "model.layers.0.self_attn.q_proj.lora_A"
  std::vector<int64_t> shape;
  int64_t offset = 0;
  int64_t numel = 0;
  bool decay = true;  // whether weight decay is for it, as transformers' Trainer decides: not for biases and norms
};

// Whether layers keep what their backward pass wants, or compute it again from their input.
enum class GradientCheckpointing {
  kAuto,   // as many keep it as the device's memory allows
  kNever,  // all keep it
  kAlways,
};

struct TrainingModelOptions {
  c10::ScalarType compute_dtype =
      c10::ScalarType::Float;  // of activations and base weights; A, B, gradients and their sums stay f32
  double lora_dropout = 0.0;
  // The same inputs give the same bits on the same kind of hardware. Without it a GPU's attention may be faster.
  bool deterministic = true;
  // kAlways is refused where FusedTrainingModel does not compute the model; the others keep everything there.
  GradientCheckpointing gradient_checkpointing = GradientCheckpointing::kAuto;
};

// One thread calls it at a time. The same inputs on the same kind of hardware with the same number of threads give the
// same bits.
class TrainingModel {
 public:
  // `weights` live on the device to use, in compute_dtype; what PrepareBase does is done here. Copies the adapter into
  // the flat parameters.
  static absl::StatusOr<std::unique_ptr<TrainingModel>> Create(ModelWeights weights, const LoraAdapter& adapter,
                                                               const TrainingModelOptions& options);
  virtual ~TrainingModel() = default;

  virtual const std::vector<ParameterSlice>& parameters() const = 0;
  // [numel] f32 on the device; the optimizer writes to it between calls.
  virtual at::Tensor& flat_parameters() = 0;
  // The adapter as it stands, copied to the CPU.
  virtual LoraAdapter ExportAdapter() const = 0;

  // Writes (does not add) grad_scale * d(loss sum)/d(parameters) into `flat_gradient` ([numel] f32 on the device).
  // `dropout_key` names the micro-batch: the same key, the same mask. Errors: kInvalidArgument (ids outside the
  // vocabulary), kResourceExhausted (out of memory; says how much was asked).
  virtual absl::StatusOr<LossSum> ForwardBackward(const MicroBatch& batch, double grad_scale, uint64_t dropout_key,
                                                  at::Tensor& flat_gradient) = 0;

  // The loss alone, without dropout.
  virtual absl::StatusOr<LossSum> Loss(const MicroBatch& batch) = 0;
};

}  // namespace retort
