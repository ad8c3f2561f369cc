#include "model/training/fused_arguments.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace retort::internal {
namespace {

// Columns are counted in 32 bits.
constexpr int64_t kMostColumns = int64_t{1} << 30;

bool IsMatrixType(c10::ScalarType type) { return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf; }

// A matrix whose last dimension lies side by side.
void CheckMatrix(const at::Tensor& matrix, const char* what) {
  TORCH_CHECK(matrix.defined() && (matrix.dim() == 2 || matrix.dim() == 3), what, " is no matrix");
  TORCH_CHECK(IsMatrixType(matrix.scalar_type()), what, " is ", matrix.scalar_type(), ", not f32, bf16 or f16");
  TORCH_CHECK(matrix.size(-1) <= 1 || matrix.stride(-1) == 1, what, " has columns that lie apart");
  TORCH_CHECK(matrix.size(-1) <= kMostColumns, what, " has ", matrix.size(-1), " columns");
}

void CheckTwoDimensions(const at::Tensor& matrix, const char* what) {
  CheckMatrix(matrix, what);
  TORCH_CHECK(matrix.dim() == 2, what, " has ", matrix.dim(), " dimensions, not 2");
}

void CheckLike(const at::Tensor& matrix, const at::Tensor& like, const char* what) {
  CheckMatrix(matrix, what);
  TORCH_CHECK(matrix.sizes() == like.sizes(), what, " is ", matrix.sizes(), ", not ", like.sizes());
  TORCH_CHECK(matrix.scalar_type() == like.scalar_type(), what, " is ", matrix.scalar_type(), ", not ",
              like.scalar_type());
  TORCH_CHECK(matrix.device() == like.device(), what, " is on ", matrix.device(), ", not ", like.device());
}

void CheckFlatBuffer(const at::Tensor& buffer, c10::ScalarType type, int64_t numel, c10::Device device,
                     const char* what) {
  TORCH_CHECK(buffer.defined() && buffer.is_contiguous(), what, " is not contiguous");
  TORCH_CHECK(buffer.scalar_type() == type, what, " is ", buffer.scalar_type(), ", not ", type);
  TORCH_CHECK(buffer.numel() == numel, what, " has ", buffer.numel(), " elements, not ", numel);
  TORCH_CHECK(buffer.device() == device, what, " is on ", buffer.device(), ", not ", device);
}

}  // namespace

void CheckRmsNorm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& y) {
  CheckMatrix(x, "x");
  CheckLike(y, x, "y");
  TORCH_CHECK(x.size(-1) > 0, "x has no columns");
  CheckFlatBuffer(weight, x.scalar_type(), x.size(-1), x.device(), "the norm's weight");
}

void CheckRmsNormBackward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                          const at::Tensor& residual, const at::Tensor& dx) {
  CheckRmsNorm(x, weight, dx);
  CheckLike(grad, x, "the gradient");
  if (residual.defined()) CheckLike(residual, x, "the residual");
}

void CheckRotate(const at::Tensor& x, int64_t heads, const at::Tensor& cos, const at::Tensor& sin) {
  CheckTwoDimensions(x, "x");
  CheckTwoDimensions(cos, "the cosines");
  CheckLike(sin, cos, "the sines");
  TORCH_CHECK(cos.scalar_type() == at::kFloat && cos.device() == x.device(), "cosines are f32, on x's device");
  TORCH_CHECK(cos.size(0) == x.size(0), cos.size(0), " rows of cosines for ", x.size(0), " tokens");
  TORCH_CHECK(heads > 0 && x.size(1) % heads == 0 && 2 * cos.size(1) <= x.size(1) / heads, heads, " heads of ",
              x.size(1), " columns cannot be rotated by ", cos.size(1), " angles");
}

void CheckSwiGlu(const at::Tensor& gate_up, const at::Tensor& y) {
  CheckTwoDimensions(gate_up, "gate and up");
  CheckTwoDimensions(y, "y");
  TORCH_CHECK(gate_up.size(0) == y.size(0) && gate_up.size(1) == 2 * y.size(1), "gate and up are ", gate_up.sizes(),
              ", y is ", y.sizes());
  TORCH_CHECK(gate_up.scalar_type() == y.scalar_type() && gate_up.device() == y.device(),
              "gate and up have another type or device than y");
}

void CheckSwiGluBackward(const at::Tensor& grad, const at::Tensor& gate_up, const at::Tensor& y) {
  CheckSwiGlu(gate_up, grad);
  if (y.defined()) CheckLike(y, grad, "y");
}

void CheckCrossEntropy(const at::Tensor& logits, const at::Tensor& targets, const at::Tensor& losses) {
  CheckTwoDimensions(logits, "logits");
  TORCH_CHECK(logits.size(1) > 0, "logits have no columns");
  CheckFlatBuffer(targets, at::kLong, logits.size(0), logits.device(), "targets");
  CheckFlatBuffer(losses, at::kFloat, logits.size(0), logits.device(), "losses");
}

void CheckSquareSum(const at::Tensor& x, const at::Tensor& out) {
  CheckFlatBuffer(x, at::kFloat, x.numel(), x.device(), "x");
  CheckFlatBuffer(out, at::kDouble, 1, x.device(), "the sum of squares");
}

void CheckAdamW(const at::Tensor& square_sum, double max_norm, const at::Tensor& gradient, const at::Tensor& parameters,
                const at::Tensor& exp_avg, const at::Tensor& exp_avg_sq) {
  const int64_t numel = parameters.numel();
  const c10::Device device = parameters.device();
  CheckFlatBuffer(parameters, at::kFloat, numel, device, "parameters");
  CheckFlatBuffer(gradient, at::kFloat, numel, device, "the gradient");
  CheckFlatBuffer(exp_avg, at::kFloat, numel, device, "exp_avg");
  CheckFlatBuffer(exp_avg_sq, at::kFloat, numel, device, "exp_avg_sq");
  if (max_norm > 0) CheckFlatBuffer(square_sum, at::kDouble, 1, device, "the sum of squares");
}

void CheckFlatBlock(const FlatBlock& block) {
  CheckTwoDimensions(block.matrix, "a block's matrix");
  const int64_t rows = block.transposed ? block.columns : block.rows;
  const int64_t columns = block.transposed ? block.rows : block.columns;
  TORCH_CHECK(block.offset >= 0 && block.matrix.size(0) == rows && block.matrix.size(1) == columns,
              "a block's matrix is ", block.matrix.sizes(), ", not [", rows, ", ", columns, "]");
}

int64_t EndOf(const std::vector<FlatBlock>& blocks) {
  int64_t end = 0;
  for (const FlatBlock& block : blocks) end = std::max(end, block.offset + block.rows * block.columns);
  return end;
}

void CheckFlat(const at::Tensor& flat, int64_t end) {
  TORCH_CHECK(flat.is_contiguous() && flat.scalar_type() == at::kFloat, "the flat buffer is not f32 and contiguous");
  TORCH_CHECK(flat.numel() >= end, "the flat buffer has ", flat.numel(), " elements, blocks end at ", end);
}

RetortTrainAdamW ScalarsOf(const FusedAdamW& step, double max_norm) {
  RetortTrainAdamW scalars = {};
  scalars.decay = static_cast<float>(1 - step.learning_rate * step.weight_decay);
  scalars.one_minus_beta1 = static_cast<float>(1 - step.beta1);
  scalars.beta2 = static_cast<float>(step.beta2);
  scalars.one_minus_beta2 = static_cast<float>(1 - step.beta2);
  scalars.bias_correction2_sqrt = static_cast<float>(step.bias_correction2_sqrt);
  scalars.epsilon = static_cast<float>(step.epsilon);
  scalars.negative_step_size = static_cast<float>(-(step.learning_rate / step.bias_correction1));
  scalars.max_norm = max_norm;
  return scalars;
}

std::vector<RetortTrainRange> JoinedRanges(const std::vector<std::pair<int64_t, int64_t>>& ranges, int64_t numel) {
  std::vector<RetortTrainRange> joined;
  int64_t end = 0;
  for (const auto& [first, last] : ranges) {
    TORCH_CHECK(end <= first && first <= last && last <= numel, "elements ", first, " to ", last, " of ", numel,
                " are not behind those before them");
    end = last;
    if (first == last) continue;
    if (!joined.empty() && joined.back().last == first) {
      joined.back().last = last;
    } else {
      joined.push_back({first, last});
    }
  }
  return joined;
}

}  // namespace retort::internal
