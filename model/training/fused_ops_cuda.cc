#include <ATen/Functions.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <map>
#include <mutex>

#include "model/kernels/kernel_plugin.h"
#include "model/training/fused_arguments.h"
#include "model/training/fused_ops.h"
#include "model/training/fused_plugin.h"

namespace retort {
namespace {

using at::Tensor;

int TypeOf(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case c10::ScalarType::BFloat16:
      return RETORT_TRAIN_BF16;
    case c10::ScalarType::Half:
      return RETORT_TRAIN_F16;
    default:
      return RETORT_TRAIN_F32;
  }
}

// The kernels write through some of these and only read others; which ones fused_plugin.h says.
void* DataOf(const Tensor& tensor) { return const_cast<void*>(tensor.const_data_ptr()); }

RetortTrainRows RowsOf(const Tensor& matrix) {
  if (!matrix.defined()) return {};
  return {DataOf(matrix), matrix.stride(0)};
}

RetortTrainNestedRows NestedRowsOf(const Tensor& matrix) {
  if (!matrix.defined()) return {};
  return {DataOf(matrix), matrix.stride(0), matrix.dim() == 3 ? matrix.stride(1) : 0};
}

int64_t InnerOf(const Tensor& matrix) { return matrix.dim() == 3 ? matrix.size(1) : 1; }

int64_t RowCount(const Tensor& matrix) { return matrix.size(0) * InnerOf(matrix); }

void Check(const RetortTrainFunctions& kernels, int error, const char* what) {
  TORCH_CHECK(error == 0, what, ": ", kernels.error_text(error));
}

int32_t SideFor(int64_t length, int32_t most) {
  int32_t side = RETORT_TRAIN_TILE_SIDE_MIN;
  while (side < length && side < most) side *= 2;
  return side;
}

// A tile that wastes little on a block of a few rows or columns, and is square where both are many.
void ChooseTile(RetortTrainBlock& block) {
  constexpr int32_t kSquare = 64;
  if (block.columns < kSquare) {
    block.tile_columns = SideFor(block.columns, kSquare);
    block.tile_rows = RETORT_TRAIN_TILE / block.tile_columns;
  } else {
    block.tile_rows = SideFor(block.rows, kSquare);
    block.tile_columns = RETORT_TRAIN_TILE / block.tile_rows;
  }
}

class CudaFlatBlocks final : public FlatBlocks {
 public:
  CudaFlatBlocks(const RetortTrainFunctions& kernels, const std::vector<FlatBlock>& blocks)
      : kernels_(kernels), end_(internal::EndOf(blocks)) {
    std::vector<RetortTrainBlock> table;
    std::vector<int32_t> block_of_tile;
    for (const FlatBlock& block : blocks) {
      internal::CheckFlatBlock(block);
      TORCH_CHECK(block.matrix.device() == blocks[0].matrix.device(), "blocks lie on several devices");
      if (block.rows == 0 || block.columns == 0) continue;
      RetortTrainBlock own = {};
      own.matrix = DataOf(block.matrix);
      own.stride = block.matrix.stride(0);
      own.offset = block.offset;
      own.rows = block.rows;
      own.columns = block.columns;
      own.first_tile = static_cast<int64_t>(block_of_tile.size());
      own.type = TypeOf(block.matrix);
      own.transposed = block.transposed ? 1 : 0;
      own.scale = block.scale;
      ChooseTile(own);
      const int64_t tiles =
          ((own.rows + own.tile_rows - 1) / own.tile_rows) * ((own.columns + own.tile_columns - 1) / own.tile_columns);
      TORCH_CHECK(own.first_tile + tiles <= INT_MAX, "blocks of more than ", INT_MAX, " tiles");
      block_of_tile.insert(block_of_tile.end(), static_cast<size_t>(tiles), static_cast<int32_t>(table.size()));
      table.push_back(own);
    }
    tiles_ = static_cast<int64_t>(block_of_tile.size());
    if (tiles_ == 0) return;
    blocks_ = OnDevice(table.data(), table.size() * sizeof(RetortTrainBlock), blocks[0].matrix.device());
    block_of_tile_ = OnDevice(block_of_tile.data(), block_of_tile.size() * sizeof(int32_t), blocks_.device());
  }

  void Write(const Tensor& flat) const override {
    internal::CheckFlat(flat, end_);
    if (tiles_ == 0) return;
    const c10::Device device = blocks_.device();
    TORCH_CHECK(flat.device() == device, "the flat buffer is on ", flat.device(), ", its blocks on ", device);
    Check(kernels_,
          kernels_.flat_blocks(device.index(), flat.const_data_ptr<float>(),
                               static_cast<const RetortTrainBlock*>(blocks_.const_data_ptr()),
                               static_cast<const int32_t*>(block_of_tile_.const_data_ptr()), tiles_, StreamOf(device)),
          "copy blocks of a flat buffer");
  }

 private:
  static Tensor OnDevice(const void* bytes, size_t size, c10::Device device) {
    const Tensor host = at::empty({static_cast<int64_t>(size)}, at::TensorOptions(at::kByte));
    std::memcpy(host.mutable_data_ptr(), bytes, size);
    return host.to(device);
  }

  const RetortTrainFunctions& kernels_;
  const int64_t end_;
  int64_t tiles_ = 0;
  Tensor blocks_;         // RetortTrainBlock [blocks]
  Tensor block_of_tile_;  // int32_t [tiles_]
};

class CudaOps final : public FusedOps {
 public:
  explicit CudaOps(const RetortTrainFunctions& kernels) : kernels_(kernels) {}

  bool Supports(c10::Device device) const {
    const int error = kernels_.supports(device.index());
    if (error != 0) {
      spdlog::warn("training_kernels_unfit device={} reason=\"{}\"", device.str(), kernels_.error_text(error));
    }
    return error == 0;
  }

  void RmsNorm(const Tensor& x, const Tensor& weight, double eps, Tensor& y) const override {
    internal::CheckRmsNorm(x, weight, y);
    if (x.numel() == 0) return;
    const RetortTrainNestedRows from = NestedRowsOf(x);
    const RetortTrainNestedRows to = NestedRowsOf(y);
    Check(kernels_,
          kernels_.rms_norm(x.device().index(), TypeOf(x), RowCount(x), InnerOf(x), x.size(-1), &from,
                            weight.const_data_ptr(), static_cast<float>(eps), &to, StreamOf(x.device())),
          "RMS norm");
  }

  void RmsNormBackward(const Tensor& grad, const Tensor& x, const Tensor& weight, double eps, const Tensor& residual,
                       Tensor& dx) const override {
    internal::CheckRmsNormBackward(grad, x, weight, residual, dx);
    if (x.numel() == 0) return;
    const RetortTrainNestedRows grads = NestedRowsOf(grad);
    const RetortTrainNestedRows from = NestedRowsOf(x);
    const RetortTrainNestedRows residuals = NestedRowsOf(residual);
    const RetortTrainNestedRows to = NestedRowsOf(dx);
    Check(kernels_,
          kernels_.rms_norm_backward(x.device().index(), TypeOf(x), RowCount(x), InnerOf(x), x.size(-1), &grads, &from,
                                     weight.const_data_ptr(), static_cast<float>(eps), &residuals, &to,
                                     StreamOf(x.device())),
          "RMS norm's gradient");
  }

  void Rotate(Tensor& x, int64_t heads, const Tensor& cos, const Tensor& sin, bool inverse) const override {
    internal::CheckRotate(x, heads, cos, sin);
    if (cos.numel() == 0) return;
    const RetortTrainRows rows = RowsOf(x);
    const RetortTrainRows cosines = RowsOf(cos);
    const RetortTrainRows sines = RowsOf(sin);
    Check(kernels_,
          kernels_.rotate(x.device().index(), TypeOf(x), x.size(0), heads, x.size(1) / heads, cos.size(1), &rows,
                          &cosines, &sines, inverse ? 1 : 0, StreamOf(x.device())),
          "rotate");
  }

  void SwiGlu(const Tensor& gate_up, Tensor& y) const override {
    internal::CheckSwiGlu(gate_up, y);
    if (y.numel() == 0) return;
    const RetortTrainRows from = RowsOf(gate_up);
    const RetortTrainRows to = RowsOf(y);
    Check(kernels_,
          kernels_.swiglu(y.device().index(), TypeOf(y), y.size(0), y.size(1), &from, &to, StreamOf(y.device())),
          "SwiGLU");
  }

  void SwiGluBackward(const Tensor& grad, Tensor& gate_up, Tensor& y) const override {
    internal::CheckSwiGluBackward(grad, gate_up, y);
    if (grad.numel() == 0) return;
    const RetortTrainRows grads = RowsOf(grad);
    const RetortTrainRows own = RowsOf(gate_up);
    const RetortTrainRows values = RowsOf(y);
    Check(kernels_,
          kernels_.swiglu_backward(grad.device().index(), TypeOf(grad), grad.size(0), grad.size(1), &grads, &own,
                                   &values, StreamOf(grad.device())),
          "SwiGLU's gradient");
  }

  void CrossEntropy(Tensor& logits, const Tensor& targets, float scale, bool gradient, Tensor& losses) const override {
    internal::CheckCrossEntropy(logits, targets, losses);
    if (logits.size(0) == 0) return;
    const RetortTrainRows rows = RowsOf(logits);
    Check(kernels_,
          kernels_.cross_entropy(logits.device().index(), TypeOf(logits), logits.size(0), logits.size(1), &rows,
                                 targets.const_data_ptr<int64_t>(), scale, gradient ? 1 : 0,
                                 losses.mutable_data_ptr<float>(), StreamOf(logits.device())),
          "cross-entropy");
  }

  void SquareSum(const Tensor& x, Tensor& out) const override {
    internal::CheckSquareSum(x, out);
    const Tensor parts = at::empty({RETORT_TRAIN_PARTS}, out.options());
    Check(kernels_,
          kernels_.square_sum(x.device().index(), x.const_data_ptr<float>(), x.numel(),
                              parts.mutable_data_ptr<double>(), out.mutable_data_ptr<double>(), StreamOf(x.device())),
          "sum of squares");
  }

  void AdamW(const FusedAdamW& step, const Tensor& square_sum, double max_norm,
             const std::vector<std::pair<int64_t, int64_t>>& undecayed, const Tensor& gradient, Tensor& parameters,
             Tensor& exp_avg, Tensor& exp_avg_sq) const override {
    internal::CheckAdamW(square_sum, max_norm, gradient, parameters, exp_avg, exp_avg_sq);
    const std::vector<RetortTrainRange> ranges = internal::JoinedRanges(undecayed, parameters.numel());
    if (parameters.numel() == 0) return;
    const RetortTrainAdamW scalars = internal::ScalarsOf(step, max_norm);
    const double* norm = max_norm > 0 ? square_sum.const_data_ptr<double>() : nullptr;
    Check(kernels_,
          kernels_.adamw(parameters.device().index(), &scalars, norm, ranges.data(),
                         static_cast<int64_t>(ranges.size()), parameters.numel(), gradient.const_data_ptr<float>(),
                         parameters.mutable_data_ptr<float>(), exp_avg.mutable_data_ptr<float>(),
                         exp_avg_sq.mutable_data_ptr<float>(), StreamOf(parameters.device())),
          "AdamW");
  }

  std::unique_ptr<FlatBlocks> MakeFlatBlocks(std::vector<FlatBlock> blocks) const override {
    return std::make_unique<CudaFlatBlocks>(kernels_, blocks);
  }

 private:
  const RetortTrainFunctions& kernels_;
};

// Null: the library is not there.
const CudaOps* LoadCudaOps() {
  const auto* kernels = LoadKernels<RetortTrainFunctions>("libretort_train.so", "RetortTrainPlugin", "training");
  if (kernels == nullptr) return nullptr;
  static const CudaOps ops(*kernels);
  return &ops;
}

}  // namespace

const FusedOps& FusedOps::For(c10::Device device) {
  if (!device.is_cuda()) return Reference();
  static const CudaOps* const ops = LoadCudaOps();
  if (ops == nullptr) return Reference();
  if (!device.has_index()) device = c10::impl::VirtualGuardImpl(device.type()).getDevice();
  static std::mutex& mutex = *new std::mutex;
  static std::map<c10::DeviceIndex, bool>& supported = *new std::map<c10::DeviceIndex, bool>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = supported.find(device.index());
  const bool fit = known != supported.end() ? known->second : ops->Supports(device);
  supported[device.index()] = fit;
  return fit ? static_cast<const FusedOps&>(*ops) : Reference();
}

}  // namespace retort
