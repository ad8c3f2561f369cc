// The training itself: steps, evaluation, and the state that goes from one step to the next.
//
// The state after step N is a function of the job alone, not of who computed it: the batch plan names step N's samples,
// the gradient is summed in a fixed tree, and every rank applies it to the same state in the same way. A step changes
// the state only after this rank has received the whole summed gradient, and then cannot fail. When a gang breaks while
// step N is exchanged, some ranks may have applied it and others not; both states are right ones, of N and N - 1 steps.
// The next gang begins with the state of the member with most steps (state_sync.h), and if that one is lost too, step N
// is computed again, with the same bits. Two ranks cannot be further apart, since step N + 1 needs every member's part
// of it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/training_model.h"
#include "retort/v1/job.pb.h"
#include "student/dataset.h"
#include "student/epoch_plan.h"
#include "student/gang.h"
#include "student/optimizer.h"
#include "student/schedule.h"

namespace retort {

// Reports what is going on; called on the training thread.
struct TrainerProgress {
  int64_t step = 0;    // steps done
  double loss = 0;     // of the last one
  int64_t tokens = 0;  // of that step, over all ranks
};

class Trainer {
 public:
  // `model` starts from what it holds, step 0. Errors: kInvalidArgument (no samples, settings out of range).
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(const v1::TrainingSpec& training,
                                                         std::unique_ptr<TrainingModel> model, Dataset train,
                                                         Dataset validation);

  // Called after each micro-batch of this rank, in steps and evaluations, with their number so far. For progress only.
  void OnMicroBatch(std::function<void(int64_t done)> callback) { on_micro_batch_ = std::move(callback); }

  const EpochPlan& plan() const { return plan_; }
  const v1::TrainingSpec& training() const { return training_; }
  TrainingModel& model() { return *model_; }
  int64_t numel() const { return numel_; }

  // Steps in the state.
  int64_t step() const { return step_; }
  bool finished() const { return step_ == plan_.total_steps(); }
  // Points of the loss curve so far: every logging_steps, the last step, and where the validation loss was taken.
  const std::vector<v1::LossPoint>& history() const { return history_; }
  const AdamWMoments& moments() const { return moments_; }
  // Replaces the state. Tensors are copied. Errors: kInvalidArgument (sizes differ, more steps than planned).
  absl::Status Restore(int64_t step, const at::Tensor& parameters, const AdamWMoments& moments,
                       std::vector<v1::LossPoint> history);

  // One optimizer step, collectively. `wants_leave` is this rank's wish to re-form the gang after it; `leave` is set
  // when any rank has it. Errors: the gang's, then gang.broken() and the state is as before; anything else ends the
  // training: kInvalidArgument (a loss or gradient that is no number: which step, what to try), what the model says.
  absl::StatusOr<TrainerProgress> Step(Gang& gang, bool wants_leave, bool* leave);

  // Whether the validation loss is to be taken now, after step(), and has not been.
  bool EvaluationDue() const;
  // Mean over the trained tokens of the validation samples, collectively, noted in history(). Errors: as Step.
  absl::Status Evaluate(Gang& gang);

 private:
  Trainer(const v1::TrainingSpec& training, std::unique_ptr<TrainingModel> model, Dataset train, Dataset validation,
          EpochPlan plan);
  static MicroBatch Collect(const Dataset& dataset, absl::Span<const int64_t> samples);
  bool EvaluatesAt(int64_t step) const;
  absl::Status CheckFinite(double loss, double norm, double learning_rate) const;

  const v1::TrainingSpec training_;
  const std::unique_ptr<TrainingModel> model_;
  const Dataset train_;
  const Dataset validation_;
  const EpochPlan plan_;
  const int64_t numel_;
  ScheduleOptions schedule_;
  AdamWOptions adamw_;
  std::vector<FlatRange> undecayed_;  // in order
  AdamWMoments moments_;
  at::Tensor gradient_;  // [numel], the step's sum
  std::function<void(int64_t done)> on_micro_batch_ = [](int64_t) {};
  int64_t step_ = 0;
  std::vector<v1::LossPoint> history_;
};

}  // namespace retort
