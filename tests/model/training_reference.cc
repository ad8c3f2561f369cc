#include "tests/model/training_reference.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "model/generation/rope.h"
#include "model/sft_example.h"
#include "model/training/dropout.h"

namespace retort::testing {
namespace {

class Reference {
 public:
  Reference(const ModelWeights& weights, const LoraAdapter& adapter, double dropout, uint64_t key)
      : weights_(weights), config_(weights.config), adapter_(adapter), dropout_(dropout), key_(key) {
    for (const auto& [name, pair] : adapter.modules) {
      parameters_[absl::StrCat(name, ".lora_A")] = pair.a.to(at::kDouble).detach().requires_grad_(true);
      parameters_[absl::StrCat(name, ".lora_B")] = pair.b.to(at::kDouble).detach().requires_grad_(true);
    }
  }

  ReferenceResult Run(const MicroBatch& batch) {
    total_tokens_ = static_cast<int64_t>(batch.input_ids.size());
    at::Tensor loss = at::zeros({}, at::kDouble);
    for (size_t i = 0; i + 1 < batch.sequence_offsets.size(); ++i) {
      const int64_t begin = batch.sequence_offsets[i];
      const int64_t end = batch.sequence_offsets[i + 1];
      const at::Tensor ids = at::tensor(batch.input_ids, at::kLong).narrow(0, begin, end - begin);
      const at::Tensor log_probabilities = at::log_softmax(Logits(ids, begin), 1);
      for (int64_t t = begin; t + 1 < end; ++t) {
        const int32_t label = batch.labels[t + 1];
        if (label != kIgnoreLabel) loss = loss - log_probabilities.select(0, t - begin).select(0, label);
      }
    }
    ReferenceResult result{.loss = loss.item<double>()};
    if (loss.requires_grad()) loss.backward();
    for (const auto& [name, parameter] : parameters_) {
      result.gradient[name] = parameter.grad().defined() ? parameter.grad() : at::zeros_like(parameter);
    }
    return result;
  }

 private:
  at::Tensor Norm(const at::Tensor& x, const at::Tensor& weight) const {
    return x * (x.square().mean(-1, true) + config_.rms_norm_eps).rsqrt() * weight.to(at::kDouble);
  }

  at::Tensor Linear(const std::string& name, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& x) {
    at::Tensor y = at::mm(x, weight.to(at::kDouble).t());
    if (bias.defined()) y = y + bias.to(at::kDouble);
    const auto module = adapter_.modules.find(name);
    if (module == adapter_.modules.end()) return y;
    at::Tensor dropped = x;
    if (dropout_ > 0.0) {
      const auto index = static_cast<uint64_t>(std::distance(adapter_.modules.begin(), module));
      dropped = x * DropoutMask(key_, index, dropout_, total_tokens_, x.size(1), at::kCPU)
                        .narrow(0, begin_, x.size(0))
                        .to(at::kDouble);
    }
    const double scaling = adapter_.config.lora_alpha / static_cast<double>(adapter_.config.r);
    return y + scaling * at::mm(at::mm(dropped, parameters_[name + ".lora_A"].t()), parameters_[name + ".lora_B"].t());
  }

  at::Tensor Rotate(const at::Tensor& x) const {  // [tokens, heads, head_dim]
    const internal::RopeTable rope = internal::MakeRopeTable(config_, x.size(0));
    const at::Tensor cos = at::cat({rope.cos, rope.cos}, 1).to(at::kDouble).unsqueeze(1);
    const at::Tensor sin = at::cat({rope.sin, rope.sin}, 1).to(at::kDouble).unsqueeze(1);
    const int64_t half = x.size(2) / 2;
    return x * cos + at::cat({-x.narrow(2, half, half), x.narrow(2, 0, half)}, 2) * sin;
  }

  at::Tensor Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const {
    const int64_t group = config_.num_attention_heads / config_.num_key_value_heads;
    const at::Tensor keys = k.repeat_interleave(group, 1).permute({1, 2, 0});
    const at::Tensor values = v.repeat_interleave(group, 1).transpose(0, 1);
    const int64_t tokens = q.size(0);
    const at::Tensor future = at::ones({tokens, tokens}, at::kBool).triu(1);
    const at::Tensor scores = (at::matmul(q.transpose(0, 1), keys) / std::sqrt(static_cast<double>(config_.head_dim)))
                                  .masked_fill(future, -std::numeric_limits<double>::infinity());
    return at::matmul(at::softmax(scores, -1), values).transpose(0, 1).reshape({tokens, -1});
  }

  at::Tensor Logits(const at::Tensor& ids, int64_t begin) {
    begin_ = begin;
    at::Tensor x = weights_.embed_tokens.to(at::kDouble).index_select(0, ids);
    const int64_t tokens = ids.size(0);
    for (size_t i = 0; i < weights_.layers.size(); ++i) {
      const LayerWeights& w = weights_.layers[i];
      const std::string attention = absl::StrCat("model.layers.", i, ".self_attn.");
      const std::string mlp = absl::StrCat("model.layers.", i, ".mlp.");
      const at::Tensor normed = Norm(x, w.input_norm);
      const auto heads = [&](const at::Tensor& y) { return y.view({tokens, -1, config_.head_dim}); };
      const at::Tensor q = Rotate(heads(Linear(attention + "q_proj", w[kQ].weight, w[kQ].bias, normed)));
      const at::Tensor k = Rotate(heads(Linear(attention + "k_proj", w[kK].weight, w[kK].bias, normed)));
      const at::Tensor v = heads(Linear(attention + "v_proj", w[kV].weight, w[kV].bias, normed));
      x = x + Linear(attention + "o_proj", w[kO].weight, w[kO].bias, Attend(q, k, v));
      const at::Tensor middle = Norm(x, w.post_attention_norm);
      const at::Tensor product = at::silu(Linear(mlp + "gate_proj", w[kGate].weight, w[kGate].bias, middle)) *
                                 Linear(mlp + "up_proj", w[kUp].weight, w[kUp].bias, middle);
      x = x + Linear(mlp + "down_proj", w[kDown].weight, w[kDown].bias, product);
    }
    return at::mm(Norm(x, weights_.final_norm), weights_.lm_head.to(at::kDouble).t());
  }

  const ModelWeights& weights_;
  const ModelConfig& config_;
  const LoraAdapter& adapter_;
  const double dropout_;
  const uint64_t key_;
  std::map<std::string, at::Tensor> parameters_;
  int64_t total_tokens_ = 0;
  int64_t begin_ = 0;  // of the sample, in the batch: the mask is over the batch's tokens
};

}  // namespace

ReferenceResult ReferenceForwardBackward(const ModelWeights& weights, const LoraAdapter& adapter,
                                         const MicroBatch& batch, double lora_dropout, uint64_t dropout_key) {
  return Reference(weights, adapter, lora_dropout, dropout_key).Run(batch);
}

}  // namespace retort::testing
