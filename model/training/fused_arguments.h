// What FusedOps' implementations share: they refuse the same arguments and derive the same scalars from them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "model/training/fused_ops.h"
#include "model/training/fused_plugin.h"

namespace retort::internal {

// Each throws c10::Error where shapes, types, strides or devices are not what fused_ops.h asks for.
void CheckRmsNorm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& y);
void CheckRmsNormBackward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                          const at::Tensor& residual, const at::Tensor& dx);
void CheckRotate(const at::Tensor& x, int64_t heads, const at::Tensor& cos, const at::Tensor& sin);
void CheckSwiGlu(const at::Tensor& gate_up, const at::Tensor& y);
void CheckSwiGluBackward(const at::Tensor& grad, const at::Tensor& gate_up, const at::Tensor& y);
void CheckCrossEntropy(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& losses);
void CheckSquareSum(const at::Tensor& x, const at::Tensor& out);
void CheckAdamW(const at::Tensor& square_sum, double max_norm, const at::Tensor& gradient, const at::Tensor& parameters,
                const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq);
void CheckFlatBlock(const FlatBlock& block);
// The elements of a flat buffer that `blocks` need.
int64_t EndOf(const std::vector<FlatBlock>& blocks);
void CheckFlat(const at::Tensor& flat, int64_t end);

// Rounded to f32 as AdamWStep (student/) rounds them.
RetortTrainAdamW ScalarsOf(const FusedAdamW& step, double max_norm);

// Neighbours joined, empty ones left out. Throws c10::Error where they are not ascending or reach beyond `numel`.
std::vector<RetortTrainRange> JoinedRanges(const std::vector<std::pair<int64_t, int64_t>>& ranges, int64_t numel);

}  // namespace retort::internal
