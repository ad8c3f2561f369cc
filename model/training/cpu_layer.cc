#include "model/training/cpu_layer.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"

namespace retort::internal {
namespace {

std::vector<float> Padded(const at::Tensor& vector) {
  const at::Tensor dense = vector.to(at::kFloat).contiguous();
  std::vector<float> padded(static_cast<size_t>(PaddedWidth(dense.numel())), 0.0F);
  std::copy_n(dense.const_data_ptr<float>(), dense.numel(), padded.data());
  return padded;
}

}  // namespace

CpuLayer::CpuLayer(const ModelConfig& config)
    : kernels_(ChooseTrainKernels()),
      hidden_(config.hidden_size),
      heads_(config.num_attention_heads),
      kv_heads_(config.num_key_value_heads),
      head_dim_(config.head_dim),
      intermediate_(config.intermediate_size),
      epsilon_(config.rms_norm_eps),
      attention_(heads_, kv_heads_, head_dim_, PaddedWidth(heads_ * head_dim_),
                 PaddedWidth(heads_ * head_dim_) + PaddedWidth(kv_heads_ * head_dim_)) {}

absl::StatusOr<CpuLayer> CpuLayer::Create(const ModelConfig& config, const LayerWeights& weights, int64_t index,
                                          const FlatAdapter& adapter, ThreadPool& pool) {
  const auto source = [&](Projection projection) {
    const Linear& linear = weights[projection];
    return LinearSource{linear.weight, linear.bias,
                        adapter.Find(absl::StrCat("model.layers.", index, ".", ProjectionName(projection)))};
  };
  const auto linear = [&](const std::vector<LinearSource>& sources) {
    return CpuLinear::Create(sources, adapter.rank(), adapter.scaling(), pool);
  };
  CpuLayer layer(config);
  layer.input_norm_ = Padded(weights.input_norm);
  layer.post_attention_norm_ = Padded(weights.post_attention_norm);
  ASSIGN_OR_RETURN(layer.qkv_, linear({source(kQ), source(kK), source(kV)}));
  ASSIGN_OR_RETURN(layer.o_, linear({source(kO)}));
  ASSIGN_OR_RETURN(layer.gate_up_, linear({source(kGate), source(kUp)}));
  ASSIGN_OR_RETURN(layer.down_, linear({source(kDown)}));
  return layer;
}

void CpuLayer::PackAdapter(const float* flat) {
  for (CpuLinear* linear : {&qkv_, &o_, &gate_up_, &down_}) linear->PackAdapter(flat);
}

CpuSavedLayer CpuLayer::TakeSaved(Arena& arena, int64_t tokens) const {
  return {.input = arena.Take(tokens, hidden_),
          .qkv = arena.Take(tokens, qkv_.out_width()),
          .attention = arena.Take(tokens, heads_ * head_dim_),
          .statistics = arena.Take(tokens, 2 * heads_),
          .middle = arena.Take(tokens, hidden_),
          .gate_up = arena.Take(tokens, gate_up_.out_width()),
          .low_qkv = arena.Take(tokens, qkv_.low_width()),
          .low_o = arena.Take(tokens, o_.low_width()),
          .low_gate_up = arena.Take(tokens, gate_up_.low_width()),
          .low_down = arena.Take(tokens, down_.low_width())};
}

CpuGradients CpuLayer::TakeGradients(Arena& arena, int64_t tokens) const {
  return {.out = arena.Take(tokens, hidden_),
          .middle = arena.Take(tokens, hidden_),
          .input = arena.Take(tokens, hidden_),
          .gate_up = arena.Take(tokens, gate_up_.out_width()),
          .attention = arena.Take(tokens, heads_ * head_dim_),
          .qkv = arena.Take(tokens, qkv_.out_width()),
          .product = arena.Take(tokens, intermediate_),
          .normed = arena.Take(tokens, hidden_),
          .normed_middle = arena.Take(tokens, hidden_),
          .low_qkv = arena.Take(tokens, qkv_.low_width()),
          .low_o = arena.Take(tokens, o_.low_width()),
          .low_gate_up = arena.Take(tokens, gate_up_.low_width()),
          .low_down = arena.Take(tokens, down_.low_width())};
}

int64_t CpuLayer::widest() const {
  return std::max({PaddedWidth(hidden_), PaddedWidth(intermediate_), PaddedWidth(heads_ * head_dim_)});
}

void CpuLayer::RotateRow(float* row, int64_t token, const Rope& rope, float sign) const {
  const int64_t half = head_dim_ / 2;
  const float* cos = rope.cos + rope.positions[token] * half;
  const float* sin = rope.sin + rope.positions[token] * half;
  for (int64_t head = 0; head < heads_; ++head) kernels_.rotate(row + head * head_dim_, cos, sin, sign, half);
  float* keys = row + qkv_.offset(1);
  for (int64_t head = 0; head < kv_heads_; ++head) kernels_.rotate(keys + head * head_dim_, cos, sin, sign, half);
}

void CpuLayer::ForwardToAttention(int64_t first, int64_t rows, const Rope& rope, const CpuDropout& dropout,
                                  const CpuScratch& scratch, const CpuSavedLayer& saved) const {
  const int64_t width = PaddedWidth(hidden_);
  for (int64_t i = 0; i < rows; ++i) {
    kernels_.rms_norm(saved.input.row(first + i), input_norm_.data(), width, hidden_, epsilon_, scratch.normed.row(i));
  }
  qkv_.Forward(scratch.normed, first, rows, dropout, scratch.dropped, saved.qkv.From(first), saved.low_qkv.From(first));
  const int64_t attention_width = heads_ * head_dim_;
  for (int64_t i = first; i < first + rows; ++i) {
    RotateRow(saved.qkv.row(i), i, rope, 1.0F);
    std::fill(saved.attention.row(i) + attention_width, saved.attention.row(i) + PaddedWidth(attention_width), 0.0F);
  }
}

void CpuLayer::ForwardFromAttention(int64_t first, int64_t rows, const CpuDropout& dropout, const CpuScratch& scratch,
                                    const CpuSavedLayer& saved, MatrixView out) const {
  const int64_t width = PaddedWidth(hidden_);
  const MatrixView middle = saved.middle.From(first);
  o_.Forward(saved.attention.From(first), first, rows, dropout, scratch.dropped, middle, saved.low_o.From(first));
  for (int64_t i = 0; i < rows; ++i) {
    kernels_.add(middle.row(i), saved.input.row(first + i), width);
    kernels_.rms_norm(middle.row(i), post_attention_norm_.data(), width, hidden_, epsilon_, scratch.normed.row(i));
  }
  const MatrixView gate_up = saved.gate_up.From(first);
  gate_up_.Forward(scratch.normed, first, rows, dropout, scratch.dropped, gate_up, saved.low_gate_up.From(first));
  for (int64_t i = 0; i < rows; ++i) {
    kernels_.swiglu(gate_up.row(i), gate_up.row(i) + gate_up_.offset(1), PaddedWidth(intermediate_),
                    scratch.wide.row(i));
  }
  down_.Forward(scratch.wide, first, rows, dropout, scratch.dropped, out.From(first), saved.low_down.From(first));
  for (int64_t i = 0; i < rows; ++i) kernels_.add(out.row(first + i), middle.row(i), width);
}

void CpuLayer::BackwardToAttention(int64_t first, int64_t rows, const CpuDropout& dropout, const CpuScratch& scratch,
                                   const CpuSavedLayer& saved, const CpuGradients& gradients) const {
  const int64_t width = PaddedWidth(hidden_);
  down_.Backward(gradients.out.From(first), first, rows, dropout, scratch.dropped, gradients.low_down.From(first),
                 scratch.wide);
  const int64_t up = gate_up_.offset(1);
  for (int64_t i = 0; i < rows; ++i) {
    const float* gate_up = saved.gate_up.row(first + i);
    float* d_gate_up = gradients.gate_up.row(first + i);
    kernels_.swiglu_backward(scratch.wide.row(i), gate_up, gate_up + up, PaddedWidth(intermediate_), d_gate_up,
                             d_gate_up + up, gradients.product.row(first + i));
  }
  gate_up_.Backward(gradients.gate_up.From(first), first, rows, dropout, scratch.dropped,
                    gradients.low_gate_up.From(first), scratch.normed);
  for (int64_t i = 0; i < rows; ++i) {
    const float* middle = saved.middle.row(first + i);
    kernels_.rms_norm_backward(scratch.normed.row(i), middle, post_attention_norm_.data(), gradients.out.row(first + i),
                               width, hidden_, epsilon_, gradients.middle.row(first + i));
    kernels_.rms_norm(middle, post_attention_norm_.data(), width, hidden_, epsilon_,
                      gradients.normed_middle.row(first + i));
  }
  o_.Backward(gradients.middle.From(first), first, rows, dropout, scratch.dropped, gradients.low_o.From(first),
              gradients.attention.From(first));
}

void CpuLayer::BackwardFromAttention(int64_t first, int64_t rows, const Rope& rope, const CpuDropout& dropout,
                                     const CpuScratch& scratch, const CpuSavedLayer& saved,
                                     const CpuGradients& gradients) const {
  const int64_t width = PaddedWidth(hidden_);
  const int64_t q_width = heads_ * head_dim_;
  const int64_t kv_width = kv_heads_ * head_dim_;
  for (int64_t i = first; i < first + rows; ++i) {
    float* row = gradients.qkv.row(i);
    RotateRow(row, i, rope, -1.0F);
    std::fill(row + q_width, row + PaddedWidth(q_width), 0.0F);
    for (int part = 1; part < 3; ++part) {
      std::fill(row + qkv_.offset(part) + kv_width, row + qkv_.offset(part) + PaddedWidth(kv_width), 0.0F);
    }
  }
  const bool wanted = gradients.input.data != nullptr;
  qkv_.Backward(gradients.qkv.From(first), first, rows, dropout, scratch.dropped, gradients.low_qkv.From(first),
                wanted ? scratch.normed : MatrixView{});
  for (int64_t i = 0; i < rows; ++i) {
    const float* input = saved.input.row(first + i);
    kernels_.rms_norm(input, input_norm_.data(), width, hidden_, epsilon_, gradients.normed.row(first + i));
    if (!wanted) continue;
    kernels_.rms_norm_backward(scratch.normed.row(i), input, input_norm_.data(), gradients.middle.row(first + i), width,
                               hidden_, epsilon_, gradients.input.row(first + i));
  }
}

int64_t CpuLayer::gradient_tasks() const {
  return qkv_.gradient_tasks() + o_.gradient_tasks() + gate_up_.gradient_tasks() + down_.gradient_tasks();
}

void CpuLayer::Gradient(int64_t task, int64_t tokens, const CpuDropout& dropout, const CpuScratch& scratch,
                        const CpuSavedLayer& saved, const CpuGradients& gradients, float* flat_gradient) const {
  struct Group {
    const CpuLinear* linear;
    CpuLinear::GradientInputs inputs;
  };
  const Group groups[] = {
      {&down_, {gradients.product, gradients.out, saved.low_down, gradients.low_down, tokens}},
      {&gate_up_, {gradients.normed_middle, gradients.gate_up, saved.low_gate_up, gradients.low_gate_up, tokens}},
      {&o_, {saved.attention, gradients.middle, saved.low_o, gradients.low_o, tokens}},
      {&qkv_, {gradients.normed, gradients.qkv, saved.low_qkv, gradients.low_qkv, tokens}},
  };
  for (const Group& group : groups) {
    if (task < group.linear->gradient_tasks()) {
      group.linear->Gradient(task, group.inputs, dropout, scratch.gradient, flat_gradient);
      return;
    }
    task -= group.linear->gradient_tasks();
  }
  RETORT_CHECK(false);
}

}  // namespace retort::internal
