#include "model/training/cpu_linear.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "common/status.h"
#include "model/training/dropout.h"

namespace retort::internal {
namespace {

// Packs a matrix of `columns` inputs into panels of 16 outputs: out[panel][k][j] = scale * at(16 * panel + j, k).
template <typename At>
void PackPanels(int64_t outputs, int64_t inputs, float scale, const At& at, float* out) {
  for (int64_t panel = 0; panel < PaddedWidth(outputs) / 16; ++panel) {
    const int64_t count = std::min<int64_t>(16, outputs - 16 * panel);
    for (int64_t k = 0; k < inputs; ++k) {
      for (int64_t j = 0; j < count; ++j) out[(panel * inputs + k) * 16 + j] = scale * at(16 * panel + j, k);
    }
  }
}

at::Tensor TransposedPadded(const std::vector<LinearSource>& sources, int64_t in_features, int64_t out_width) {
  at::Tensor transposed = at::zeros({in_features, out_width}, at::kFloat);
  int64_t offset = 0;
  for (const LinearSource& source : sources) {
    transposed.narrow(1, offset, source.weight.size(0)).copy_(source.weight.t());
    offset += PaddedWidth(source.weight.size(0));
  }
  return transposed;
}

}  // namespace

void MultiplyPacked(const TrainKernels& kernels, MatrixView a, int64_t rows, const PackedMatrix& matrix,
                    int64_t first_panel, int64_t panels, int64_t first_input, int64_t k, MatrixView c,
                    bool accumulate) {
  if (matrix.bf16()) {
    const auto* b = static_cast<const uint16_t*>(matrix.panel(first_panel)) + 16 * first_input;
    kernels.multiply_bf16(a.data, a.ld, rows, b, matrix.panel_stride(), panels, k, c.data, c.ld, accumulate);
  } else {
    const auto* b = static_cast<const float*>(matrix.panel(first_panel)) + 16 * first_input;
    kernels.multiply_f32(a.data, a.ld, rows, b, matrix.panel_stride(), panels, k, c.data, c.ld, accumulate);
  }
}

absl::StatusOr<CpuLinear> CpuLinear::Create(const std::vector<LinearSource>& sources, int64_t rank, double scaling,
                                            ThreadPool& pool) {
  CpuLinear linear;
  linear.kernels_ = &ChooseTrainKernels();
  linear.in_features_ = sources.front().weight.size(1);
  linear.rank_ = rank;
  linear.scaling_ = scaling;
  const int64_t in_width = PaddedWidth(linear.in_features_);
  const int64_t rank_width = PaddedWidth(rank);
  int64_t adapter_floats = 0;
  std::vector<at::Tensor> weights;
  bool biased = false;
  for (const LinearSource& source : sources) {
    Part part{.out_features = source.weight.size(0), .offset = linear.out_width_};
    const int64_t width = PaddedWidth(part.out_features);
    if (source.slot != nullptr) {
      part.slot = *source.slot;
      part.low_offset = linear.low_width_;
      linear.low_width_ += rank_width;
      const auto take = [&](int64_t floats) { return std::exchange(adapter_floats, adapter_floats + floats); };
      part.a_down = take(rank_width * linear.in_features_);
      part.b_up = take(width * rank);
      part.b_down = take(rank_width * part.out_features);
      part.a_up = take(in_width * rank);
      const int index = static_cast<int>(linear.parts_.size());
      for (const bool of_b : {false, true}) {
        const int64_t panels = (of_b ? width : in_width) / 16;
        for (int64_t first = 0; first < panels; first += kGradientPanels) {
          linear.tasks_.push_back({index, of_b, first, std::min(kGradientPanels, panels - first)});
        }
      }
    }
    biased = biased || source.bias.defined();
    weights.push_back(source.weight);
    linear.out_width_ += width;
    linear.parts_.push_back(part);
  }
  if (biased) {
    linear.bias_.assign(static_cast<size_t>(linear.out_width_), 0.0F);
    for (size_t i = 0; i < sources.size(); ++i) {
      if (!sources[i].bias.defined()) continue;
      const at::Tensor bias = sources[i].bias.to(at::kFloat).contiguous();
      std::copy_n(bias.const_data_ptr<float>(), bias.numel(), linear.bias_.data() + linear.parts_[i].offset);
    }
  }
  ASSIGN_OR_RETURN(linear.forward_, PackedMatrix::Pack(weights, /*interleave=*/false, pool));
  ASSIGN_OR_RETURN(linear.backward_,
                   PackedMatrix::Pack({TransposedPadded(sources, linear.in_features_, linear.out_width_)},
                                      /*interleave=*/false, pool));
  const auto adapter_bytes = adapter_floats * static_cast<int64_t>(sizeof(float));
  ASSIGN_OR_RETURN(linear.adapter_, PageBuffer::Allocate(adapter_bytes, /*huge=*/false));
  return linear;
}

void CpuLinear::PackAdapter(const float* flat) {
  for (const Part& part : parts_) {
    if (!part.slot.has_value()) continue;
    const float* a = flat + part.slot->a_offset;
    const float* b = flat + part.slot->b_offset;
    const auto a_at = [&](int64_t low, int64_t in) { return a[low * in_features_ + in]; };
    const auto b_at = [&](int64_t out, int64_t low) { return b[out * rank_ + low]; };
    const auto scale = static_cast<float>(scaling_);
    PackPanels(rank_, in_features_, 1.0F, a_at, adapter() + part.a_down);
    PackPanels(part.out_features, rank_, scale, b_at, adapter() + part.b_up);
    PackPanels(
        rank_, part.out_features, scale, [&](int64_t low, int64_t out) { return b_at(out, low); },
        adapter() + part.b_down);
    PackPanels(
        in_features_, rank_, 1.0F, [&](int64_t in, int64_t low) { return a_at(low, in); }, adapter() + part.a_up);
  }
}

void CpuLinear::Low(const Part& part, MatrixView x, int64_t first_row, int64_t rows, const CpuDropout& dropout,
                    MatrixView scratch, MatrixView low) const {
  if (dropout.p > 0.0) {
    const auto stream = static_cast<uint64_t>(part.slot->index);
    for (int64_t i = 0; i < rows; ++i) {
      float* out = scratch.row(i);
      FillDropoutMask(dropout.key, stream, dropout.p, (first_row + i) * in_features_, in_features_, out);
      for (int64_t j = 0; j < in_features_; ++j) out[j] *= x.row(i)[j];
    }
    x = scratch;
  }
  kernels_->multiply_f32(x.data, x.ld, rows, adapter() + part.a_down, in_features_ * 16, PaddedWidth(rank_) / 16,
                         in_features_, low.data + part.low_offset, low.ld, /*accumulate=*/false);
}

void CpuLinear::Forward(MatrixView x, int64_t first_row, int64_t rows, const CpuDropout& dropout, MatrixView scratch,
                        MatrixView y, MatrixView low) const {
  MultiplyPacked(*kernels_, x, rows, forward_, 0, forward_.panels(), 0, in_features_, y, /*accumulate=*/false);
  for (const Part& part : parts_) {
    if (!part.slot.has_value()) continue;
    Low(part, x, first_row, rows, dropout, scratch, low);
    kernels_->multiply_f32(low.data + part.low_offset, low.ld, rows, adapter() + part.b_up, rank_ * 16,
                           PaddedWidth(part.out_features) / 16, rank_, y.data + part.offset, y.ld,
                           /*accumulate=*/true);
  }
  if (bias_.empty()) return;
  for (int64_t i = 0; i < rows; ++i) kernels_->add(y.row(i), bias_.data(), out_width_);
}

void CpuLinear::Backward(MatrixView dy, int64_t first_row, int64_t rows, const CpuDropout& dropout, MatrixView scratch,
                         MatrixView d_low, MatrixView dx) const {
  const bool wanted = dx.data != nullptr;
  if (wanted) {
    MultiplyPacked(*kernels_, dy, rows, backward_, 0, backward_.panels(), 0, out_width_, dx, /*accumulate=*/false);
  }
  const int64_t in_panels = PaddedWidth(in_features_) / 16;
  for (const Part& part : parts_) {
    if (!part.slot.has_value()) continue;
    float* low = d_low.data + part.low_offset;
    kernels_->multiply_f32(dy.data + part.offset, dy.ld, rows, adapter() + part.b_down, part.out_features * 16,
                           PaddedWidth(rank_) / 16, part.out_features, low, d_low.ld, /*accumulate=*/false);
    if (!wanted) continue;
    const bool drop = dropout.p > 0.0;
    const MatrixView out = drop ? scratch : dx;
    kernels_->multiply_f32(low, d_low.ld, rows, adapter() + part.a_up, rank_ * 16, in_panels, rank_, out.data, out.ld,
                           /*accumulate=*/!drop);
    if (!drop) continue;
    std::vector<float> mask(static_cast<size_t>(in_features_));
    for (int64_t i = 0; i < rows; ++i) {
      FillDropoutMask(dropout.key, static_cast<uint64_t>(part.slot->index), dropout.p, (first_row + i) * in_features_,
                      in_features_, mask.data());
      for (int64_t j = 0; j < in_features_; ++j) dx.row(i)[j] += mask[j] * scratch.row(i)[j];
    }
  }
}

void CpuLinear::Gradient(int64_t task, const GradientInputs& inputs, const CpuDropout& dropout, MatrixView scratch,
                         float* flat_gradient) const {
  const Task& work = tasks_[task];
  const Part& part = parts_[work.part];
  const int64_t column = 16 * work.first_panel;
  const int64_t count = std::min(16 * work.panels, (work.of_b ? part.out_features : in_features_) - column);
  if (work.of_b) {
    kernels_->multiply_transposed(inputs.low.data + part.low_offset, inputs.low.ld, rank_,
                                  inputs.dy.data + part.offset + column, inputs.dy.ld, work.panels, inputs.tokens,
                                  scratch.data, scratch.ld, /*accumulate=*/false);
    float* out = flat_gradient + part.slot->b_offset + column * rank_;
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t low = 0; low < rank_; ++low)
        out[j * rank_ + low] = static_cast<float>(scaling_) * scratch.row(low)[j];
    }
    return;
  }
  const float* d_low = inputs.d_low.data + part.low_offset;
  if (dropout.p <= 0.0) {
    kernels_->multiply_transposed(d_low, inputs.d_low.ld, rank_, inputs.x.data + column, inputs.x.ld, work.panels,
                                  inputs.tokens, scratch.data, scratch.ld, /*accumulate=*/false);
  } else {
    const MatrixView dropped = scratch.From(rank_);
    for (int64_t row = 0; row < inputs.tokens; row += kGradientRows) {
      const int64_t rows = std::min(kGradientRows, inputs.tokens - row);
      for (int64_t i = 0; i < rows; ++i) {
        float* out = dropped.row(i);
        FillDropoutMask(dropout.key, static_cast<uint64_t>(part.slot->index), dropout.p,
                        (row + i) * in_features_ + column, count, out);
        for (int64_t j = 0; j < count; ++j) out[j] *= inputs.x.row(row + i)[column + j];
        std::fill(out + count, out + 16 * work.panels, 0.0F);
      }
      kernels_->multiply_transposed(d_low + row * inputs.d_low.ld, inputs.d_low.ld, rank_, dropped.data, dropped.ld,
                                    work.panels, rows, scratch.data, scratch.ld, /*accumulate=*/row > 0);
    }
  }
  float* out = flat_gradient + part.slot->a_offset + column;
  for (int64_t low = 0; low < rank_; ++low) std::copy_n(scratch.row(low), count, out + low * in_features_);
}

}  // namespace retort::internal
