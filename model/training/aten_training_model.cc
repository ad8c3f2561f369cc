// TrainingModel over ATen operators and autograd: any architecture, any device, f32 or bf16.
#include "model/training/aten_training_model.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "model/blocks/block.h"
#include "model/blocks/ops.h"
#include "model/generation/rope.h"
#include "model/torch_status.h"
#include "model/training/batch_plan.h"
#include "model/training/dropout.h"
#include "model/training/flat_adapter.h"
#include "model/training/head_loss.h"
#include "model/training/lora_linear.h"

namespace retort {
namespace {

// An adapted module's trainable tensors in one pass: leaves of the graph.
struct Leaves {
  const AdapterSlot* slot = nullptr;
  at::Tensor a, b;
};
using LayerLeaves = std::array<Leaves, kProjections>;

// One call's constants.
struct Pass {
  const std::vector<int64_t>* offsets = nullptr;
  RopeRows rope;
  uint64_t dropout_key = 0;
  double dropout = 0.0;
};

class Context final : public LayerContext {
 public:
  Context(const ModelConfig& config, const LayerWeights& weights, const LayerLeaves& leaves, const Pass& pass,
          double scaling)
      : config_(config), weights_(weights), leaves_(leaves), pass_(pass), scaling_(scaling) {}

  at::Tensor Project(Projection projection, const at::Tensor& x) override {
    const Leaves& leaves = leaves_[projection];
    if (leaves.slot == nullptr) return FrozenLinear(x, weights_[projection]);
    at::Tensor mask;
    if (pass_.dropout > 0.0) {
      mask = DropoutMask(pass_.dropout_key, static_cast<uint64_t>(leaves.slot->index), pass_.dropout, x.size(0),
                         x.size(1), x.device());
    }
    return LoraLinear(x, weights_[projection], leaves.a, leaves.b, scaling_, mask);
  }

  at::Tensor Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window) override {
    return PackedAttention(q, k, v, *pass_.offsets, config_.attention_scale, window);
  }

 private:
  const ModelConfig& config_;
  const LayerWeights& weights_;
  const LayerLeaves& leaves_;
  const Pass& pass_;
  const double scaling_;
};

class AtenTrainingModel final : public TrainingModel {
 public:
  AtenTrainingModel(ModelWeights weights, FlatAdapter adapter, const TrainingModelOptions& options)
      : weights_(std::move(weights)),
        config_(weights_.config),
        options_(options),
        adapter_(std::move(adapter)),
        device_(weights_.embed_tokens.device()),
        tables_(config_),
        slots_(weights_.layers.size()) {
    for (size_t i = 0; i < weights_.layers.size(); ++i) {
      for (const ProjectionShape& shape : ProjectionsOf(config_, static_cast<int64_t>(i))) {
        slots_[i][shape.projection] =
            adapter_.Find(absl::StrCat("model.layers.", i, ".", ProjectionName(shape.projection)));
      }
    }
  }

  const std::vector<ParameterSlice>& parameters() const override { return adapter_.parameters(); }
  at::Tensor& flat_parameters() override { return adapter_.flat(); }
  LoraAdapter ExportAdapter() const override { return adapter_.Export(); }

  absl::StatusOr<LossSum> ForwardBackward(const MicroBatch& batch, double grad_scale, uint64_t dropout_key,
                                          at::Tensor& flat_gradient) override {
    return CatchTorchErrors("training step", [&] { return Run(batch, grad_scale, dropout_key, &flat_gradient); });
  }

  absl::StatusOr<LossSum> Loss(const MicroBatch& batch) override {
    return CatchTorchErrors("loss", [&] { return Run(batch, 1.0, 0, nullptr); });
  }

 private:
  absl::StatusOr<LossSum> Run(const MicroBatch& batch, double grad_scale, uint64_t dropout_key, at::Tensor* gradient) {
    ASSIGN_OR_RETURN(const BatchPlan plan, PlanBatch(batch, config_.vocab_size));
    if (gradient != nullptr) gradient->zero_();
    LossSum sum{.trained_tokens = static_cast<int64_t>(plan.rows.size())};
    if (plan.rows.empty()) return sum;
    const at::AutoGradMode record(gradient != nullptr);
    const Pass pass = MakePass(batch, plan, dropout_key, gradient != nullptr ? options_.lora_dropout : 0.0);
    const std::vector<LayerLeaves> leaves = MakeLeaves(gradient != nullptr);
    at::Tensor x = weights_.embed_tokens.index_select(0, at::tensor(batch.input_ids, at::kLong).to(device_));
    for (size_t i = 0; i < weights_.layers.size(); ++i) {
      Context context(config_, weights_.layers[i], leaves[i], pass, adapter_.scaling());
      x = RunBlock(config_, weights_.layers[i], static_cast<int64_t>(i), x, pass.rope, context);
    }
    const at::Tensor trained = x.index_select(0, at::tensor(plan.rows, at::kLong).to(device_));
    const at::Tensor normed = RmsNorm(trained, weights_.final_norm, config_.rms_norm_eps);
    const HeadLoss head = [&] {
      const c10::NoGradGuard no_grad;
      return CrossEntropy(normed.detach(), weights_.lm_head, at::tensor(plan.targets, at::kLong).to(device_),
                          grad_scale, gradient != nullptr);
    }();
    sum.loss = head.loss;
    if (gradient == nullptr || !normed.requires_grad()) return sum;
    x = at::Tensor();
    normed.backward(head.hidden);
    const c10::NoGradGuard no_grad;
    for (const LayerLeaves& layer : leaves) {
      for (const Leaves& module : layer) {
        if (module.slot == nullptr) continue;
        if (module.a.grad().defined()) adapter_.A(*module.slot, *gradient).copy_(module.a.grad());
        if (module.b.grad().defined()) adapter_.B(*module.slot, *gradient).copy_(module.b.grad());
      }
    }
    return sum;
  }

  std::vector<LayerLeaves> MakeLeaves(bool trained) const {
    std::vector<LayerLeaves> leaves(slots_.size());
    for (size_t i = 0; i < slots_.size(); ++i) {
      for (int p = 0; p < kProjections; ++p) {
        const AdapterSlot* slot = slots_[i][p];
        if (slot == nullptr) continue;
        leaves[i][p] = {slot, adapter_.A(*slot, adapter_.flat()).detach().requires_grad_(trained),
                        adapter_.B(*slot, adapter_.flat()).detach().requires_grad_(trained)};
      }
    }
    return leaves;
  }

  Pass MakePass(const MicroBatch& batch, const BatchPlan& plan, uint64_t dropout_key, double dropout) {
    Pass pass{.offsets = &batch.sequence_offsets, .dropout_key = dropout_key, .dropout = dropout};
    std::vector<at::Tensor> cos, sin;
    for (size_t i = 0; i + 1 < batch.sequence_offsets.size(); ++i) {
      const int64_t length = batch.sequence_offsets[i + 1] - batch.sequence_offsets[i];
      const internal::RopeTable& table = tables_.For(length, plan.longest_sample);
      cos.push_back(table.cos.narrow(0, 0, length));
      sin.push_back(table.sin.narrow(0, 0, length));
    }
    pass.rope = {at::cat(cos, 0).unsqueeze(1).to(device_), at::cat(sin, 0).unsqueeze(1).to(device_)};
    return pass;
  }

  const ModelWeights weights_;
  const ModelConfig& config_;
  const TrainingModelOptions options_;
  FlatAdapter adapter_;
  const c10::Device device_;
  internal::RopeTables tables_;
  std::vector<std::array<const AdapterSlot*, kProjections>> slots_{};  // by layer; nullptr: not adapted
};

}  // namespace

absl::StatusOr<std::unique_ptr<TrainingModel>> MakeAtenTrainingModel(ModelWeights weights, const LoraAdapter& adapter,
                                                                     const TrainingModelOptions& options) {
  ASSIGN_OR_RETURN(FlatAdapter flat, FlatAdapter::Create(weights.config, adapter, weights.embed_tokens.device()));
  return std::make_unique<AtenTrainingModel>(std::move(weights), std::move(flat), options);
}

}  // namespace retort
