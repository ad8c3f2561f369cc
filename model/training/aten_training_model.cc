// TrainingModel over ATen operators and autograd: any architecture, any device, f32 or bf16.
#include "model/training/aten_training_model.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <array>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "model/blocks/block.h"
#include "model/blocks/ops.h"
#include "model/generation/rope.h"
#include "model/lora_weights.h"
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
  at::Tensor a, b, magnitude;
};

// What a pass trains, and the weights with it in place.
struct Trained {
  std::vector<Leaves> modules;   // by AdapterSlot::index
  std::vector<at::Tensor> full;  // by place in FlatAdapter::full()
  ModelWeights weights;
  at::Tensor dora_head;  // [vocab, hidden], f32: the head under DoRA, else undefined
};

using LayerSlots = std::array<const AdapterSlot*, kProjections>;  // nullptr: not adapted

// One call's constants.
struct Pass {
  const std::vector<int64_t>* offsets = nullptr;
  RopeRows rope;
  uint64_t dropout_key = 0;
  double dropout = 0.0;
};

class Context final : public LayerContext {
 public:
  Context(const ModelConfig& config, const LayerWeights& weights, const LayerSlots& slots, const Trained& trained,
          const Pass& pass)
      : config_(config), weights_(weights), slots_(slots), trained_(trained), pass_(pass) {}

  at::Tensor Project(Projection projection, const at::Tensor& x) override {
    const AdapterSlot* slot = slots_[projection];
    if (slot == nullptr) return FrozenLinear(x, weights_[projection]);
    at::Tensor mask;
    if (pass_.dropout > 0.0) {
      mask = DropoutMask(pass_.dropout_key, static_cast<uint64_t>(slot->index), pass_.dropout, x.size(0), x.size(1),
                         x.device());
    }
    const Leaves& leaves = trained_.modules[static_cast<size_t>(slot->index)];
    if (leaves.magnitude.defined()) {
      return DoraLinear(x, weights_[projection], leaves.a, leaves.b, leaves.magnitude, slot->scaling, mask);
    }
    return LoraLinear(x, weights_[projection], leaves.a, leaves.b, slot->scaling, mask);
  }

  at::Tensor Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window) override {
    return PackedAttention(q, k, v, *pass_.offsets, config_.attention_scale, window);
  }

 private:
  const ModelConfig& config_;
  const LayerWeights& weights_;
  const LayerSlots& slots_;
  const Trained& trained_;
  const Pass& pass_;
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
        slots_(weights_.layers.size()),
        embedding_slot_(adapter_.Find(kEmbeddingModule)),
        head_slot_(adapter_.Find(kHeadModule)) {
    for (size_t i = 0; i < weights_.layers.size(); ++i) {
      for (const ProjectionShape& shape : ProjectionsOf(config_, static_cast<int64_t>(i))) {
        slots_[i][shape.projection] =
            adapter_.Find(absl::StrCat("model.layers.", i, ".", ProjectionName(shape.projection)));
      }
    }
    for (const AdapterSlot& slot : adapter_.slots()) {
      if (slot.experts > 0 || absl::EndsWith(slot.name, ".mlp.gate.weight")) parameters_.push_back(&slot);
    }
    together_ = config_.tie_word_embeddings && adapter_.config().ensure_weight_tying;
    for (size_t i = 0; i < adapter_.full().size(); ++i) {
      const std::string& name = adapter_.full()[i].name;
      if (name == (together_ ? "model.embed_tokens.weight" : "lm_head.weight")) head_ = static_cast<int64_t>(i);
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
    const Trained trained = MakeTrained(gradient != nullptr);
    const ModelWeights& weights = trained.weights;
    const at::Tensor ids = at::tensor(batch.input_ids, at::kLong).to(device_);
    at::Tensor x = Embed(ids, trained);
    for (size_t i = 0; i < weights.layers.size(); ++i) {
      Context context(config_, weights.layers[i], slots_[i], trained, pass);
      x = RunBlock(config_, weights.layers[i], static_cast<int64_t>(i), x, pass.rope, context);
    }
    const at::Tensor last = x.index_select(0, at::tensor(plan.rows, at::kLong).to(device_));
    const at::Tensor normed = RmsNorm(last, weights.final_norm, config_.rms_norm_eps);
    const HeadAdapter adapter = AdaptHead(normed, trained, pass);
    const HeadLoss head = [&] {
      const c10::NoGradGuard no_grad;
      HeadAdapter values;
      if (adapter.low.defined()) values = {adapter.low.detach(), adapter.b.detach()};
      return CrossEntropy(normed.detach(), weights.lm_head.detach(), at::tensor(plan.targets, at::kLong).to(device_),
                          grad_scale, gradient != nullptr, weights.lm_head.requires_grad(), values);
    }();
    sum.loss = head.loss;
    if (gradient == nullptr) return sum;
    x = at::Tensor();
    torch::autograd::variable_list roots, gradients;
    const auto add_root = [&](const at::Tensor& root, const at::Tensor& of_root) {
      if (!root.defined() || !root.requires_grad()) return;
      roots.push_back(root);
      gradients.push_back(of_root);
    };
    add_root(normed, head.hidden);
    add_root(adapter.low, head.low);
    add_root(adapter.b, head.b);
    add_root(trained.dora_head, head.weight);
    if (!roots.empty()) torch::autograd::backward(roots, gradients);
    const c10::NoGradGuard no_grad;
    TakeGradients(trained, head.weight, *gradient);
    return sum;
  }

  const Leaves& LeavesOf(const AdapterSlot& slot, const Trained& trained) const {
    return trained.modules[static_cast<size_t>(slot.index)];
  }

  at::Tensor Embed(const at::Tensor& ids, const Trained& trained) const {
    const at::Tensor& table = trained.weights.embed_tokens;
    // The row of padding gets no gradient here, as torch.nn.Embedding has it.
    const int64_t padding = config_.pad_token_id.value_or(-1);
    if (embedding_slot_ != nullptr) {
      const Leaves& leaves = LeavesOf(*embedding_slot_, trained);
      return LoraEmbedding(ids, table, leaves.a, leaves.b, leaves.magnitude, embedding_slot_->scaling, padding);
    }
    // Embeddings that are trained get their gradient in a fixed order.
    return table.requires_grad() ? at::embedding(table, ids, padding) : table.index_select(0, ids);
  }

  HeadAdapter AdaptHead(const at::Tensor& normed, const Trained& trained, const Pass& pass) const {
    if (head_slot_ == nullptr || trained.dora_head.defined()) return {};
    at::Tensor mask;
    if (pass.dropout > 0.0) {
      mask = DropoutMask(pass.dropout_key, static_cast<uint64_t>(head_slot_->index), pass.dropout, normed.size(0),
                         normed.size(1), device_);
    }
    const Leaves& leaves = LeavesOf(*head_slot_, trained);
    return {LoraLow(normed, leaves.a, head_slot_->scaling, mask), leaves.b};
  }

  void TakeGradients(const Trained& trained, const at::Tensor& head, at::Tensor& gradient) const {
    const auto take = [](const at::Tensor& leaf, const at::Tensor& out) {
      if (leaf.grad().defined()) out.copy_(leaf.grad());
    };
    for (const AdapterSlot& slot : adapter_.slots()) {
      const Leaves& leaves = LeavesOf(slot, trained);
      take(leaves.a, adapter_.A(slot, gradient));
      take(leaves.b, adapter_.B(slot, gradient));
      if (leaves.magnitude.defined()) take(leaves.magnitude, adapter_.Magnitude(slot, gradient));
    }
    for (size_t i = 0; i < trained.full.size(); ++i) {
      at::Tensor out = adapter_.Full(adapter_.full()[i], gradient);
      take(trained.full[i], out);
      if (head.defined() && static_cast<int64_t>(i) == head_) out.add_(head);
    }
  }

  Trained MakeTrained(bool wanted) const {
    const auto leaf = [&](const at::Tensor& view) { return view.detach().requires_grad_(wanted); };
    Trained trained{.weights = weights_};
    for (const AdapterSlot& slot : adapter_.slots()) {
      Leaves leaves{leaf(adapter_.A(slot, adapter_.flat())), leaf(adapter_.B(slot, adapter_.flat())), at::Tensor()};
      if (slot.magnitude_offset >= 0) leaves.magnitude = leaf(adapter_.Magnitude(slot, adapter_.flat()));
      trained.modules.push_back(std::move(leaves));
    }
    std::map<std::string, at::Tensor> full;
    for (const FullSlot& slot : adapter_.full()) {
      trained.full.push_back(leaf(adapter_.Full(slot, adapter_.flat())));
      full[slot.name] = trained.full.back().to(options_.compute_dtype);
    }
    if (!full.empty()) PutInPlace(full, trained.weights);
    if (head_slot_ != nullptr && head_slot_->magnitude_offset >= 0) {
      const Leaves& leaves = LeavesOf(*head_slot_, trained);
      trained.dora_head =
          DoraWeight(trained.weights.lm_head, leaves.a, leaves.b, leaves.magnitude, head_slot_->scaling);
      trained.weights.lm_head = trained.dora_head.to(options_.compute_dtype);
    }
    for (const AdapterSlot* slot : parameters_) {
      AdaptParameter(*slot, LeavesOf(*slot, trained), trained.weights);
    }
    return trained;
  }

  void PutInPlace(const std::map<std::string, at::Tensor>& full, ModelWeights& weights) const {
    const auto put = [&](const std::string& name, at::Tensor& tensor) {
      const auto found = full.find(name);
      if (found != full.end()) tensor = found->second;
      return found != full.end();
    };
    VisitTensors(weights, [&](const TensorPlace& place) {
      if (put(place.name, *place.tensor) && place.weight_of != nullptr) place.weight_of->quantized = nullptr;
      return absl::OkStatus();
    }).IgnoreError();
    put("lm_head.weight", weights.lm_head);
    if (together_) weights.lm_head = weights.embed_tokens;
  }

  // Experts and routers as PEFT adapts them: W + scaling B A is what the layer runs on.
  static void AdaptParameter(const AdapterSlot& slot, const Leaves& leaves, ModelWeights& weights) {
    LayerWeights& layer = *LayerOf(weights, slot.name);
    if (slot.experts == 0) {
      layer.router = layer.router + at::mm(leaves.b, leaves.a) * slot.scaling;
      return;
    }
    const at::Tensor deltas = ExpertDeltas(leaves.a, leaves.b, slot.experts, slot.scaling);
    const bool down = absl::EndsWith(slot.name, ".down_proj");
    AddToExperts(down ? at::Tensor() : deltas, down ? deltas : at::Tensor(), layer);
  }

  Pass MakePass(const MicroBatch& batch, const BatchPlan& plan, uint64_t dropout_key, double dropout) {
    Pass pass{.offsets = &batch.sequence_offsets, .dropout_key = dropout_key, .dropout = dropout};
    const internal::RopeTable rows = tables_.ForSamples(batch.sequence_offsets, plan.longest_sample);
    pass.rope = {rows.cos.unsqueeze(1).to(device_), rows.sin.unsqueeze(1).to(device_)};
    return pass;
  }

  const ModelWeights weights_;
  const ModelConfig& config_;
  const TrainingModelOptions options_;
  FlatAdapter adapter_;
  const c10::Device device_;
  internal::RopeTables tables_;
  std::vector<LayerSlots> slots_{};             // by layer
  const AdapterSlot* embedding_slot_;           // nullptr: not adapted
  const AdapterSlot* head_slot_;                // likewise
  std::vector<const AdapterSlot*> parameters_;  // experts and routers
  bool together_ = false;                       // tied embeddings are trained as one
  int64_t head_ = -1;                           // place of the output head in FlatAdapter::full(); -1: not trained
};

}  // namespace

absl::StatusOr<std::unique_ptr<TrainingModel>> MakeAtenTrainingModel(ModelWeights weights, const LoraAdapter& adapter,
                                                                     const TrainingModelOptions& options) {
  ASSIGN_OR_RETURN(FlatAdapter flat, FlatAdapter::Create(weights.config, adapter, weights.embed_tokens.device()));
  return std::make_unique<AtenTrainingModel>(std::move(weights), std::move(flat), options);
}

}  // namespace retort
