#include "model/training/cpu_head.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "common/status.h"
#include "model/training/cpu_linear.h"

namespace retort::internal {

absl::StatusOr<CpuHead> CpuHead::Create(const at::Tensor& weight, ThreadPool& pool) {
  CpuHead head;
  head.kernels_ = &ChooseTrainKernels();
  head.weight_ = weight;
  ASSIGN_OR_RETURN(head.forward_, PackedMatrix::Pack({weight}, /*interleave=*/false, pool));
  ASSIGN_OR_RETURN(head.backward_, PackedMatrix::Pack({weight.t()}, /*interleave=*/false, pool));
  return head;
}

void CpuHead::Run(MatrixView hidden, int64_t rows, const int64_t* targets, float grad_scale, MatrixView logits,
                  MatrixView gradient, double* loss) const {
  const int64_t vocab = weight_.size(0);
  const int64_t width = weight_.size(1);
  const int64_t padded = PaddedWidth(width);
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  std::vector<float> highest(static_cast<size_t>(rows), kNone);
  // Of the exponentials of all logits but the target's. Kept apart, a target of probability almost 1 costs no digits.
  std::vector<double> others(static_cast<size_t>(rows), 0.0);
  std::vector<float> target_logit(static_cast<size_t>(rows), 0.0F);
  for (int64_t first = 0; first < vocab; first += kSlice) {
    const int64_t count = std::min(kSlice, vocab - first);
    MultiplyPacked(*kernels_, hidden, rows, forward_, first / 16, PaddedWidth(count) / 16, 0, width, logits, false);
    for (int64_t i = 0; i < rows; ++i) {
      float* row = logits.row(i);
      const float slice_highest = kernels_->maximum(row, count);
      if (slice_highest > highest[i]) {
        if (first > 0) {
          const float factor = std::exp(highest[i] - slice_highest);
          others[i] *= factor;
          if (gradient.data != nullptr) kernels_->scale(gradient.row(i), padded, factor);
        }
        highest[i] = slice_highest;
      }
      if (targets[i] >= first && targets[i] < first + count) {
        target_logit[i] = std::exchange(row[targets[i] - first], kNone);
      }
      others[i] += kernels_->exponentiate_sum(row, count, highest[i]);
    }
    if (gradient.data == nullptr) continue;
    MultiplyPacked(*kernels_, logits, rows, backward_, 0, backward_.panels(), first, count, gradient, first > 0);
  }
  for (int64_t i = 0; i < rows; ++i) {
    const double below = static_cast<double>(target_logit[i]) - static_cast<double>(highest[i]);
    const double own = std::exp(below);
    loss[i] = own > 0.5 ? std::log1p(others[i] / own) : std::log(others[i] + own) - below;
    if (gradient.data == nullptr) continue;
    const auto factor = static_cast<float>(grad_scale / (others[i] + own));
    const auto rest = static_cast<float>(others[i]);
    const float* target = weight_.const_data_ptr<float>() + targets[i] * width;
    float* row = gradient.row(i);
    for (int64_t j = 0; j < width; ++j) row[j] = factor * (row[j] - rest * target[j]);
  }
}

}  // namespace retort::internal
