// A model small enough to train in microseconds, and gangs of threads of one process, for tests.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "model/training_model.h"
#include "student/trainer.h"

namespace retort::testing {

// Pulls `numel` parameters towards values that the trained tokens name: loss sum = 1/2 sum over labels and parameters
// of (p - target(label, parameter))^2. Rounding makes the gradient depend on the order of its sums.
class FakeModel final : public TrainingModel {
 public:
  explicit FakeModel(int64_t numel);

  const std::vector<ParameterSlice>& parameters() const override { return slices_; }
  at::Tensor& flat_parameters() override { return flat_; }
  LoraAdapter ExportAdapter() const override;
  absl::StatusOr<LossSum> ForwardBackward(const MicroBatch& batch, double grad_scale, uint64_t dropout_key,
                                          at::Tensor& flat_gradient) override;
  absl::StatusOr<LossSum> Loss(const MicroBatch& batch) override;

  // Keys seen, in order.
  std::vector<uint64_t> dropout_keys;
  // The loss of the next calls is no number.
  bool broken = false;

 private:
  std::vector<ParameterSlice> slices_;
  at::Tensor flat_;
};

// `samples` samples of a few tokens each, all different.
Dataset FakeDataset(int64_t samples);

// Five epochs of two samples a micro-batch and four micro-batches a step.
v1::TrainingSpec FakeTraining();

std::unique_ptr<Trainer> FakeTrainer(const v1::TrainingSpec& training = FakeTraining());

// Forms a gang of `ranks` threads and runs `body` on each, with its rank's gang.
void RunGang(int ranks, const std::function<void(int rank, std::unique_ptr<Gang> gang)>& body);

// Whether both hold the same bits: step, parameters, moments, history.
bool SameState(Trainer& a, Trainer& b);

}  // namespace retort::testing
