#include "model/training/aten_training_model.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <array>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "model/generation/rope.h"
#include "model/torch_status.h"
#include "model/training/aten_ops.h"
#include "model/training/batch_plan.h"
#include "model/training/dropout.h"
#include "model/training/flat_adapter.h"

namespace retort {
namespace {

enum Projection { kQ, kK, kV, kO, kGate, kUp, kDown, kProjections };
constexpr std::array<const char*, kProjections> kNames = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                                          "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                                          "mlp.down_proj"};

struct Linear {
  at::Tensor weight;                  // [out_features, in_features]
  at::Tensor bias;                    // [out_features] or undefined
  std::optional<AdapterSlot> slot{};  // absent: not adapted
};

struct Layer {
  at::Tensor input_norm;
  at::Tensor post_attention_norm;
  std::array<Linear, kProjections> linears;
};

// What a layer's backward pass needs of its forward pass; norms and SwiGLU are computed again.
struct SavedLayer {
  at::Tensor input;   // [tokens, hidden]: the residual stream
  at::Tensor middle;  // [tokens, hidden]: after attention
  at::Tensor q, k, v;
  Attention attention;
  at::Tensor gate, up;                         // [tokens, intermediate]
  std::array<at::Tensor, kProjections> low{};  // [tokens, r]: A x
};

// One call's constants.
struct Pass {
  const std::vector<int64_t>* offsets = nullptr;
  at::Tensor cos, sin;    // [tokens, 1, head_dim / 2]
  at::Tensor parameters;  // the flat adapter in the compute dtype
  uint64_t dropout_key = 0;
  double dropout = 0.0;
};

class AtenTrainingModel final : public TrainingModel {
 public:
  AtenTrainingModel(ModelWeights weights, FlatAdapter adapter, const TrainingModelOptions& options)
      : config_(weights.config),
        options_(options),
        adapter_(std::move(adapter)),
        device_(weights.embed_tokens.device()),
        embed_tokens_(weights.embed_tokens),
        final_norm_(weights.final_norm),
        lm_head_(weights.lm_head) {
    for (size_t i = 0; i < weights.layers.size(); ++i) {
      const LayerWeights& w = weights.layers[i];
      Layer layer{w.input_norm,
                  w.post_attention_norm,
                  {{{w.q_proj, w.q_bias},
                    {w.k_proj, w.k_bias},
                    {w.v_proj, w.v_bias},
                    {w.o_proj, w.o_bias},
                    {w.gate_proj, w.gate_bias},
                    {w.up_proj, w.up_bias},
                    {w.down_proj, w.down_bias}}}};
      for (int p = 0; p < kProjections; ++p) {
        const AdapterSlot* slot = adapter_.Find(absl::StrCat("model.layers.", i, ".", kNames[p]));
        if (slot != nullptr) layer.linears[p].slot = *slot;
      }
      layers_.push_back(std::move(layer));
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
    const c10::NoGradGuard no_grad;
    ASSIGN_OR_RETURN(const BatchPlan plan, PlanBatch(batch, config_.vocab_size));
    if (gradient != nullptr) gradient->zero_();
    LossSum sum{.trained_tokens = static_cast<int64_t>(plan.rows.size())};
    if (plan.rows.empty()) return sum;
    const Pass pass = MakePass(batch, plan, dropout_key, gradient != nullptr ? options_.lora_dropout : 0.0);
    at::Tensor x = embed_tokens_.index_select(0, at::tensor(batch.input_ids, at::kLong).to(device_));
    std::vector<SavedLayer> saved(gradient != nullptr ? layers_.size() : 0);
    for (size_t i = 0; i < layers_.size(); ++i) {
      x = Forward(layers_[i], pass, x, gradient != nullptr ? &saved[i] : nullptr);
    }
    const at::Tensor rows = at::tensor(plan.rows, at::kLong).to(device_);
    const at::Tensor trained = x.index_select(0, rows);
    const HeadLoss head =
        CrossEntropy(RmsNorm(trained, final_norm_, config_.rms_norm_eps), lm_head_,
                     at::tensor(plan.targets, at::kLong).to(device_), grad_scale, gradient != nullptr);
    sum.loss = head.loss;
    if (gradient == nullptr) return sum;
    at::Tensor dx = at::zeros_like(x).index_copy_(
        0, rows, RmsNormBackward(head.hidden, trained, final_norm_, config_.rms_norm_eps));
    for (size_t i = layers_.size(); i-- > 0;) {
      dx = Backward(layers_[i], pass, saved[i], dx, *gradient, /*want_input=*/i > 0);
      saved[i] = SavedLayer{};
    }
    return sum;
  }

  Pass MakePass(const MicroBatch& batch, const BatchPlan& plan, uint64_t dropout_key, double dropout) const {
    const internal::RopeTable rope = internal::MakeRopeTable(config_, plan.longest_sample);
    const at::Tensor positions = at::tensor(plan.positions, at::kLong);
    return {.offsets = &batch.sequence_offsets,
            .cos = rope.cos.index_select(0, positions).unsqueeze(1).to(device_),
            .sin = rope.sin.index_select(0, positions).unsqueeze(1).to(device_),
            .parameters = adapter_.flat().to(options_.compute_dtype),
            .dropout_key = dropout_key,
            .dropout = dropout};
  }

  at::Tensor Dropped(const at::Tensor& x, const AdapterSlot& slot, const Pass& pass) const {
    if (pass.dropout <= 0.0) return x;
    return x *
           DropoutMask(pass.dropout_key, static_cast<uint64_t>(slot.index), pass.dropout, x.size(0), x.size(1), device_)
               .to(x.scalar_type());
  }

  // W x + b + scaling * B A dropout(x). `low` receives A dropout(x).
  at::Tensor Apply(const Linear& linear, const Pass& pass, const at::Tensor& x, at::Tensor* low) const {
    at::Tensor y = linear.bias.defined() ? at::addmm(linear.bias, x, linear.weight.t()) : at::mm(x, linear.weight.t());
    if (!linear.slot.has_value()) return y;
    const at::Tensor down = at::mm(Dropped(x, *linear.slot, pass), adapter_.A(*linear.slot, pass.parameters).t());
    y.addmm_(down, adapter_.B(*linear.slot, pass.parameters).t(), 1.0, adapter_.scaling());
    if (low != nullptr) *low = down;
    return y;
  }

  // left^T right in f32.
  at::Tensor GradientProduct(const at::Tensor& left, const at::Tensor& right) const {
    if (left.scalar_type() == at::kFloat) return at::mm(left.t(), right);
    if (device_.is_cuda()) return at::mm(left.t(), right, at::kFloat);
    return at::mm(left.to(at::kFloat).t(), right.to(at::kFloat));
  }

  // Writes the gradients of A and B; returns d(loss)/dx, undefined when not wanted.
  at::Tensor ApplyBackward(const Linear& linear, const Pass& pass, const at::Tensor& dy, const at::Tensor& x,
                           const at::Tensor& low, at::Tensor& gradient, bool want_input) const {
    at::Tensor dx;
    if (want_input) dx = at::mm(dy, linear.weight);
    if (!linear.slot.has_value()) return dx;
    const AdapterSlot& slot = *linear.slot;
    adapter_.B(slot, gradient).copy_(GradientProduct(dy, low).mul_(adapter_.scaling()));
    const at::Tensor d_low = at::mm(dy, adapter_.B(slot, pass.parameters)).mul_(adapter_.scaling());
    adapter_.A(slot, gradient).copy_(GradientProduct(d_low, Dropped(x, slot, pass)));
    if (!want_input) return dx;
    const at::Tensor a = adapter_.A(slot, pass.parameters);
    if (pass.dropout > 0.0) return dx.add_(Dropped(at::mm(d_low, a), slot, pass));
    return dx.addmm_(d_low, a);
  }

  at::Tensor Heads(const at::Tensor& x) const { return x.view({x.size(0), -1, config_.head_dim}); }

  at::Tensor Forward(const Layer& layer, const Pass& pass, const at::Tensor& x, SavedLayer* saved) const {
    const auto low = [&](Projection p) { return saved != nullptr ? &saved->low[p] : nullptr; };
    const at::Tensor normed = RmsNorm(x, layer.input_norm, config_.rms_norm_eps);
    const at::Tensor q = RotateHalf(Heads(Apply(layer.linears[kQ], pass, normed, low(kQ))), pass.cos, pass.sin);
    const at::Tensor k = RotateHalf(Heads(Apply(layer.linears[kK], pass, normed, low(kK))), pass.cos, pass.sin);
    const at::Tensor v = Heads(Apply(layer.linears[kV], pass, normed, low(kV)));
    const Attention attention = AttentionForward(q, k, v, *pass.offsets);
    const at::Tensor middle = x + Apply(layer.linears[kO], pass, attention.out.flatten(1), low(kO));
    const at::Tensor normed_middle = RmsNorm(middle, layer.post_attention_norm, config_.rms_norm_eps);
    const at::Tensor gate = Apply(layer.linears[kGate], pass, normed_middle, low(kGate));
    const at::Tensor up = Apply(layer.linears[kUp], pass, normed_middle, low(kUp));
    at::Tensor out = middle + Apply(layer.linears[kDown], pass, SwiGlu(gate, up), low(kDown));
    if (saved != nullptr) {
      saved->input = x;
      saved->middle = middle;
      saved->q = q;
      saved->k = k;
      saved->v = v;
      saved->attention = attention;
      saved->gate = gate;
      saved->up = up;
    }
    return out;
  }

  at::Tensor Backward(const Layer& layer, const Pass& pass, const SavedLayer& saved, const at::Tensor& dout,
                      at::Tensor& gradient, bool want_input) const {
    const auto back = [&](Projection p, const at::Tensor& dy, const at::Tensor& x, bool want) {
      return ApplyBackward(layer.linears[p], pass, dy, x, saved.low[p], gradient, want);
    };
    const double eps = config_.rms_norm_eps;
    const at::Tensor d_product = back(kDown, dout, SwiGlu(saved.gate, saved.up), true);
    const SwiGluGradient d_mlp = SwiGluBackward(d_product, saved.gate, saved.up);
    const at::Tensor normed_middle = RmsNorm(saved.middle, layer.post_attention_norm, eps);
    const at::Tensor d_normed_middle =
        back(kGate, d_mlp.gate, normed_middle, true).add_(back(kUp, d_mlp.up, normed_middle, true));
    const at::Tensor d_middle = dout + RmsNormBackward(d_normed_middle, saved.middle, layer.post_attention_norm, eps);

    const at::Tensor d_attention = back(kO, d_middle, saved.attention.out.flatten(1), true);
    const AttentionGradient d =
        AttentionBackward(Heads(d_attention), saved.q, saved.k, saved.v, saved.attention, *pass.offsets);
    const at::Tensor normed = RmsNorm(saved.input, layer.input_norm, eps);
    const at::Tensor unrotate = -pass.sin;
    const at::Tensor dq = back(kQ, RotateHalf(d.q, pass.cos, unrotate).flatten(1), normed, want_input);
    const at::Tensor dk = back(kK, RotateHalf(d.k, pass.cos, unrotate).flatten(1), normed, want_input);
    const at::Tensor dv = back(kV, d.v.flatten(1), normed, want_input);
    if (!want_input) return {};
    return d_middle + RmsNormBackward(dq + dk + dv, saved.input, layer.input_norm, eps);
  }

  const ModelConfig config_;
  const TrainingModelOptions options_;
  FlatAdapter adapter_;
  const c10::Device device_;
  at::Tensor embed_tokens_, final_norm_, lm_head_;
  std::vector<Layer> layers_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TrainingModel>> MakeAtenTrainingModel(ModelWeights weights, const LoraAdapter& adapter,
                                                                     const TrainingModelOptions& options) {
  ASSIGN_OR_RETURN(FlatAdapter flat, FlatAdapter::Create(weights.config, adapter, weights.embed_tokens.device()));
  return std::make_unique<AtenTrainingModel>(std::move(weights), std::move(flat), options);
}

}  // namespace retort
