#include "model/fp8_blocks.h"

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace retort {

absl::StatusOr<at::Tensor> DequantiseBlockFp8(const at::Tensor& weight, const at::Tensor& scale_inv,
                                              c10::ScalarType dtype) {
  const auto blocks = [](int64_t size) { return (size + kFp8Block - 1) / kFp8Block; };
  if (weight.dim() != 2 || scale_inv.dim() != 2 || scale_inv.size(0) != blocks(weight.size(0)) ||
      scale_inv.size(1) != blocks(weight.size(1))) {
    return absl::InvalidArgumentError(absl::StrCat("float8 weight [", absl::StrJoin(weight.sizes(), ", "),
                                                   "] with scales [", absl::StrJoin(scale_inv.sizes(), ", "),
                                                   "]: there must be one scale for each ", kFp8Block, " x ", kFp8Block,
                                                   " block"));
  }
  at::Tensor out = at::empty(weight.sizes(), weight.options().dtype(dtype));
  const at::Tensor scales = scale_inv.to(at::kFloat);
  // A row of blocks at a time: no second copy of the whole matrix in f32.
  for (int64_t i = 0; i < scales.size(0); ++i) {
    const int64_t first = i * kFp8Block;
    const int64_t rows = std::min(kFp8Block, weight.size(0) - first);
    const at::Tensor by_column =
        scales.select(0, i).repeat_interleave(kFp8Block).narrow(0, 0, weight.size(1)).unsqueeze(0);
    out.narrow(0, first, rows).copy_(weight.narrow(0, first, rows).to(at::kFloat) * by_column);
  }
  return out;
}

}  // namespace retort
