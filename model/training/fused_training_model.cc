#include "model/training/fused_training_model.h"

#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "common/status.h"
#include "model/generation/rope.h"
#include "model/torch_status.h"
#include "model/training/batch_plan.h"
#include "model/training/fused_layer.h"
#include "model/training/head_loss.h"

namespace retort {
namespace {

using internal::FusedLayer;
using internal::FusedPass;
using internal::LayerTape;
using internal::PackedSamples;
using internal::Wide;

// Of the free memory, what a step may plan with: allocators leave gaps.
constexpr double kUsableShare = 0.94;

// What the device could still give to tensors: what is free, and what the allocator holds and nobody uses.
double FreeBytes(c10::Device device) {
  c10::DeviceAllocator* allocator = c10::getDeviceAllocator(device.type());
  constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  const c10::CachingDeviceAllocator::DeviceStats stats = allocator->getDeviceStats(device.index());
  const int64_t held = stats.reserved_bytes[kAll].current - stats.allocated_bytes[kAll].current;
  return static_cast<double>(allocator->getMemoryInfo(device.index()).first) + static_cast<double>(held);
}

class FusedTrainingModel final : public TrainingModel {
 public:
  FusedTrainingModel(ModelWeights weights, FlatAdapter adapter, const TrainingModelOptions& options)
      : config_(weights.config),
        options_(options),
        adapter_(std::move(adapter)),
        device_(weights.embed_tokens.device()),
        ops_(FusedOps::For(device_)),
        embed_tokens_(weights.embed_tokens),
        final_norm_(weights.final_norm),
        lm_head_(weights.lm_head),
        tables_(config_) {
    const c10::NoGradGuard no_grad;
    std::vector<FlatBlock> blocks;
    layers_.reserve(weights.layers.size());
    for (size_t i = 0; i < weights.layers.size(); ++i) {
      layers_.emplace_back(config_, static_cast<int64_t>(i), weights.layers[i], adapter_);
      weights.layers[i] = {};
      layers_.back().AppendBlocks(blocks);
    }
    blocks_ = ops_.MakeFlatBlocks(std::move(blocks));
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
    LossSum sum{.trained_tokens = static_cast<int64_t>(plan.rows.size())};
    if (plan.rows.empty()) {
      if (gradient != nullptr) gradient->zero_();
      return sum;
    }
    const c10::NoGradGuard no_grad;
    blocks_->Write(adapter_.flat());
    const PackedSamples samples(batch.sequence_offsets, device_);
    FusedPass pass{.ops = &ops_, .samples = &samples, .deterministic = options_.deterministic};
    if (gradient != nullptr) {
      pass.dropout = options_.lora_dropout;
      pass.dropout_key = dropout_key;
    }
    const internal::RopeTable rows = tables_.ForSamples(samples.offsets, plan.longest_sample);
    pass.cos = rows.cos.to(device_);
    pass.sin = rows.sin.to(device_);

    const size_t recomputed = gradient == nullptr ? layers_.size() : RecomputedLayers(samples.offsets.back());
    std::vector<LayerTape> tapes(layers_.size());
    at::Tensor x = embed_tokens_.index_select(0, at::tensor(batch.input_ids, at::kLong).to(device_));
    for (size_t i = 0; i < layers_.size(); ++i) {
      const at::Tensor input = x;
      x = layers_[i].Forward(pass, input, tapes[i]);
      if (i < recomputed) tapes[i] = {.input = gradient == nullptr ? at::Tensor() : input};
    }
    Wide stream;
    if (gradient != nullptr) stream = FusedLayer::MakeGradientStream(layers_, x.size(0));
    const at::Tensor losses = Head(plan, grad_scale, x, stream);
    x = at::Tensor();
    if (gradient != nullptr) {
      for (size_t i = layers_.size(); i-- > 0;) {
        if (i < recomputed) layers_[i].Forward(pass, at::Tensor(tapes[i].input), tapes[i]);
        layers_[i].Backward(pass, tapes[i], /*want_input=*/i > 0, adapter_, stream, *gradient);
      }
    }
    sum.loss = losses.sum(at::kDouble).item<double>();
    return sum;
  }

  // How many layers, from the first on, keep nothing but their input: they are the last to come back, when the others'
  // tapes are gone.
  size_t RecomputedLayers(int64_t tokens) const {
    switch (options_.gradient_checkpointing) {
      case GradientCheckpointing::kNever:
        return 0;
      case GradientCheckpointing::kAlways:
        return layers_.size();
      case GradientCheckpointing::kAuto:
        break;
    }
    if (device_.is_cpu()) return 0;
    const auto elements = [&](int64_t width) { return static_cast<double>(tokens * width) * embed_tokens_.itemsize(); };
    const double tape = elements(layers_.front().TapeWidth());
    const double inputs = elements(config_.hidden_size * static_cast<int64_t>(layers_.size()));
    const double logits = 4.0 * static_cast<double>(std::max(kLogitElements, lm_head_.size(0)));
    // A layer that is computed again has its tape at that time.
    const double wanted = inputs + elements(layers_.front().WorkWidth()) + tape + logits;
    const double free = FreeBytes(device_) * kUsableShare - wanted;
    const auto kept = static_cast<size_t>(std::max(0.0, free / tape));
    return layers_.size() - std::min(layers_.size(), kept);
  }

  // The losses of the trained rows, f32; where `stream` is made, it becomes the gradient of `x`.
  at::Tensor Head(const BatchPlan& plan, double grad_scale, const at::Tensor& x, Wide& stream) const {
    const bool want = stream.main.defined();
    const at::Tensor rows = at::tensor(plan.rows, at::kLong).to(device_);
    const at::Tensor targets = at::tensor(plan.targets, at::kLong).to(device_);
    const at::Tensor last = x.index_select(0, rows);
    at::Tensor normed = at::empty_like(last);
    ops_.RmsNorm(last, final_norm_, config_.rms_norm_eps, normed);
    at::Tensor losses = at::empty({last.size(0)}, last.options().dtype(at::kFloat));
    const int64_t most = std::max<int64_t>(1, kLogitElements / lm_head_.size(0));
    for (int64_t first = 0; first < last.size(0); first += most) {
      const int64_t count = std::min(most, last.size(0) - first);
      at::Tensor part = normed.narrow(0, first, count);
      at::Tensor logits = at::mm(part, lm_head_.t());
      at::Tensor part_losses = losses.narrow(0, first, count);
      ops_.CrossEntropy(logits, targets.narrow(0, first, count), static_cast<float>(grad_scale), want, part_losses);
      if (want) at::mm_out(part, logits, lm_head_);
    }
    if (want) {
      ops_.RmsNormBackward(normed, last, final_norm_, config_.rms_norm_eps, at::Tensor(), normed);
      if (last.size(0) < x.size(0)) stream.main.zero_();
      stream.main.index_copy_(0, rows, normed);
    }
    return losses;
  }

  const ModelConfig config_;
  const TrainingModelOptions options_;
  FlatAdapter adapter_;
  const c10::Device device_;
  const FusedOps& ops_;
  const at::Tensor embed_tokens_, final_norm_, lm_head_;
  internal::RopeTables tables_;
  std::vector<FusedLayer> layers_;
  std::unique_ptr<FlatBlocks> blocks_;
};

}  // namespace

bool FusedTrainingSupports(const ModelWeights& weights, const FlatAdapter& adapter) {
  const ModelConfig& config = weights.config;
  return !config.mla.has_value() && !config.moe.has_value() && !config.rope.interleaved && !HasQuantized(weights) &&
         adapter.low_rank() && !adapter.slots().empty();
}

absl::StatusOr<std::unique_ptr<TrainingModel>> MakeFusedTrainingModel(ModelWeights weights, const LoraAdapter& adapter,
                                                                      const TrainingModelOptions& options) {
  ASSIGN_OR_RETURN(FlatAdapter flat, FlatAdapter::Create(weights.config, adapter, weights.embed_tokens.device()));
  return std::make_unique<FusedTrainingModel>(std::move(weights), std::move(flat), options);
}

}  // namespace retort
