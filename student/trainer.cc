#include "student/trainer.h"

#include <ATen/Functions.h>

#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/fault.h"
#include "common/philox.h"
#include "common/status.h"

namespace retort {
namespace {

// What a rank tells the others about a step, or an evaluation: fixed-size fields, then the loss sum of each of its
// micro-batches.
struct Report {
  int64_t step = 0;
  int64_t leave = 0;
  std::vector<double> losses;
};

std::string Encode(const Report& report) {
  std::string bytes(2 * sizeof(int64_t) + report.losses.size() * sizeof(double), '\0');
  std::memcpy(bytes.data(), &report.step, sizeof(int64_t));
  std::memcpy(bytes.data() + sizeof(int64_t), &report.leave, sizeof(int64_t));
  if (!report.losses.empty()) {
    std::memcpy(bytes.data() + 2 * sizeof(int64_t), report.losses.data(), report.losses.size() * sizeof(double));
  }
  return bytes;
}

// Exchanges `mine` and puts the losses of all micro-batches in order.
absl::StatusOr<Report> GatherReports(Gang& gang, const Report& mine, int64_t micro_batches) {
  const size_t limit = 2 * sizeof(int64_t) + static_cast<size_t>(micro_batches) * sizeof(double);
  ASSIGN_OR_RETURN(const std::vector<std::string> messages, gang.GatherMessages(Encode(mine), limit));
  Report all{mine.step, 0, {}};
  for (int rank = 0; rank < gang.size(); ++rank) {
    const std::string& bytes = messages[rank];
    const auto count = static_cast<size_t>(BalancedRange(micro_batches, gang.size(), rank).size());
    int64_t step = -1;
    int64_t leave = 0;
    if (bytes.size() == 2 * sizeof(int64_t) + count * sizeof(double)) {
      std::memcpy(&step, bytes.data(), sizeof(int64_t));
      std::memcpy(&leave, bytes.data() + sizeof(int64_t), sizeof(int64_t));
      all.losses.resize(all.losses.size() + count);
      std::memcpy(all.losses.data() + all.losses.size() - count, bytes.data() + 2 * sizeof(int64_t),
                  count * sizeof(double));
    }
    // Ranks begin with the same state and make the same calls.
    if (step != mine.step) {
      return absl::InternalError(absl::StrCat("rank ", rank, " is at step ", step, ", this one at ", mine.step));
    }
    all.leave |= leave;
  }
  return all;
}

// Names a micro-batch of the whole training, for its dropout mask.
uint64_t DropoutKey(uint64_t seed, int64_t step, int64_t micro_batch) {
  const PhiloxBlock block =
      PhiloxAt(seed, static_cast<uint64_t>(step), static_cast<uint64_t>(micro_batch) + (uint64_t{1} << 63));
  return (uint64_t{block[1]} << 32) | block[0];
}

}  // namespace

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(const v1::TrainingSpec& training,
                                                         std::unique_ptr<TrainingModel> model, Dataset train,
                                                         Dataset validation) {
  if (training.packing()) return absl::InvalidArgumentError("student.training.packing: not supported in this version");
  ASSIGN_OR_RETURN(EpochPlan plan, EpochPlan::Make({.samples = train.size(),
                                                    .seed = training.seed(),
                                                    .shuffle = training.shuffle(),
                                                    .epochs = training.num_train_epochs(),
                                                    .max_steps = training.max_steps(),
                                                    .micro_batch_samples = training.per_device_train_batch_size(),
                                                    .micro_batches_per_step = training.gradient_accumulation_steps()}));
  return std::unique_ptr<Trainer>(
      new Trainer(training, std::move(model), std::move(train), std::move(validation), std::move(plan)));
}

Trainer::Trainer(const v1::TrainingSpec& training, std::unique_ptr<TrainingModel> model, Dataset train,
                 Dataset validation, EpochPlan plan)
    : training_(training),
      model_(std::move(model)),
      train_(std::move(train)),
      validation_(std::move(validation)),
      plan_(std::move(plan)),
      numel_(model_->flat_parameters().numel()) {
  schedule_ = {training.lr_scheduler_type(), training.learning_rate(), WarmupSteps(training, plan_.total_steps()),
               plan_.total_steps()};
  adamw_ = {training.adam_beta1(), training.adam_beta2(), training.adam_epsilon(), training.weight_decay()};
  for (const ParameterSlice& slice : model_->parameters()) {
    if (!slice.decay) undecayed_.push_back({slice.offset, slice.offset + slice.numel});
  }
  moments_ = ZeroMoments(model_->flat_parameters());
  gradient_ = at::empty_like(model_->flat_parameters());
}

absl::Status Trainer::Restore(int64_t step, const at::Tensor& parameters, const AdamWMoments& moments,
                              std::vector<v1::LossPoint> history) {
  if (parameters.numel() != numel_ || moments.exp_avg.numel() != numel_ || moments.exp_avg_sq.numel() != numel_) {
    return absl::InvalidArgumentError(
        absl::StrCat("the state has ", parameters.numel(), " parameters, this adapter ", numel_));
  }
  if (step < 0 || step > plan_.total_steps()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the state is after step ", step, ", but ", plan_.total_steps(), " steps are planned"));
  }
  model_->flat_parameters().copy_(parameters);
  moments_.exp_avg.copy_(moments.exp_avg);
  moments_.exp_avg_sq.copy_(moments.exp_avg_sq);
  history_ = std::move(history);
  step_ = step;
  return absl::OkStatus();
}

MicroBatch Trainer::Collect(const Dataset& dataset, absl::Span<const int64_t> samples) {
  MicroBatch batch;
  batch.sequence_offsets.push_back(0);
  for (const int64_t sample : samples) {
    const auto ids = dataset.input_ids(sample);
    const auto labels = dataset.labels(sample);
    const auto begin = static_cast<int64_t>(batch.input_ids.size());
    for (const int64_t start : dataset.sequence_starts(sample)) {
      if (start > 0) batch.sequence_offsets.push_back(begin + start);
    }
    batch.input_ids.insert(batch.input_ids.end(), ids.begin(), ids.end());
    batch.labels.insert(batch.labels.end(), labels.begin(), labels.end());
    batch.sequence_offsets.push_back(static_cast<int64_t>(batch.input_ids.size()));
  }
  return batch;
}

absl::Status Trainer::CheckFinite(double loss, double norm, double learning_rate) const {
  if (std::isfinite(loss) && std::isfinite(norm)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("training diverged at step %d of %d: loss %g, gradient norm %g, learning rate %g; nothing of "
                      "this step was applied. Try a "
                      "lower student.training.learning_rate, a warmup_ratio, a max_grad_norm, or bf16: false",
                      step_ + 1, plan_.total_steps(), loss, norm, learning_rate));
}

absl::StatusOr<TrainerProgress> Trainer::Step(Gang& gang, bool wants_leave, bool* leave) {
  RETORT_CHECK(!finished());
  const std::vector<std::vector<int64_t>> micro_batches = plan_.Step(step_);
  const auto count = static_cast<int64_t>(micro_batches.size());
  TrainerProgress progress;
  int64_t trained_tokens = 0;
  for (const auto& samples : micro_batches) {
    for (const int64_t sample : samples) {
      trained_tokens += train_.trained_tokens(sample);
      progress.tokens += static_cast<int64_t>(train_.input_ids(sample).size());
    }
  }

  Report report{step_, wants_leave ? 1 : 0, {}};
  const IndexRange range = gang.Begin(count);
  for (int64_t i = range.begin; i < range.end; ++i) {
    ASSIGN_OR_RETURN(const LossSum loss, model_->ForwardBackward(Collect(train_, micro_batches[i]),
                                                                 1.0 / static_cast<double>(trained_tokens),
                                                                 DropoutKey(training_.seed(), step_, i), gang.Leaf()));
    gang.Push();
    report.losses.push_back(loss.loss);
    on_micro_batch_(i + 1 - range.begin);
  }
  MAYBE_FAULT("student.before_exchange");
  ASSIGN_OR_RETURN(const Report all, GatherReports(gang, report, count));
  RETURN_IF_ERROR(gang.Finish(gradient_));
  MAYBE_FAULT("student.before_apply");

  progress.loss = TreeSum(all.losses) / static_cast<double>(trained_tokens);
  const double norm = GradientNorm(gradient_);
  const double learning_rate = LearningRate(schedule_, step_);
  RETURN_IF_ERROR(CheckFinite(progress.loss, norm, learning_rate));
  ClipGradient(norm, training_.max_grad_norm(), gradient_);
  AdamWStep(adamw_, step_ + 1, learning_rate, gradient_, model_->flat_parameters(), moments_, undecayed_);
  ++step_;
  progress.step = step_;
  if (step_ % std::max(1, training_.logging_steps()) == 0 || finished() || EvaluatesAt(step_)) {
    v1::LossPoint point;
    point.set_step(step_);
    point.set_loss(progress.loss);
    point.set_grad_norm(norm);
    point.set_learning_rate(learning_rate);
    history_.push_back(std::move(point));
  }
  *leave = all.leave != 0;
  MAYBE_FAULT("student.after_step");
  return progress;
}

bool Trainer::EvaluatesAt(int64_t step) const {
  if (validation_.size() == 0 || step == 0) return false;
  switch (training_.eval_strategy()) {
    case v1::EVAL_STRATEGY_STEPS:
      return step % std::max(1, training_.eval_steps()) == 0 || step == plan_.total_steps();
    case v1::EVAL_STRATEGY_EPOCH:
      return step % plan_.steps_per_epoch() == 0 || step == plan_.total_steps();
    default:
      return false;
  }
}

bool Trainer::EvaluationDue() const {
  return EvaluatesAt(step_) && !history_.empty() && history_.back().step() == step_ && !history_.back().has_eval_loss();
}

absl::Status Trainer::Evaluate(Gang& gang) {
  RETORT_CHECK(EvaluationDue());
  const int64_t batch_samples = std::max(1, training_.per_device_eval_batch_size());
  const int64_t batches = (validation_.size() + batch_samples - 1) / batch_samples;
  int64_t trained_tokens = 0;
  for (int64_t sample = 0; sample < validation_.size(); ++sample) trained_tokens += validation_.trained_tokens(sample);
  Report report{step_, 0, {}};
  const IndexRange range = BalancedRange(batches, gang.size(), gang.rank());
  for (int64_t i = range.begin; i < range.end; ++i) {
    std::vector<int64_t> samples;
    for (int64_t sample = i * batch_samples; sample < std::min((i + 1) * batch_samples, validation_.size()); ++sample) {
      samples.push_back(sample);
    }
    ASSIGN_OR_RETURN(const LossSum loss, model_->Loss(Collect(validation_, samples)));
    report.losses.push_back(loss.loss);
    on_micro_batch_(i + 1 - range.begin);
  }
  ASSIGN_OR_RETURN(const Report all, GatherReports(gang, report, batches));
  history_.back().set_eval_loss(TreeSum(all.losses) / static_cast<double>(trained_tokens));
  return absl::OkStatus();
}

}  // namespace retort
