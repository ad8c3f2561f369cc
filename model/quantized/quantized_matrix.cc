#include "model/quantized/quantized_matrix.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "common/check.h"
#include "model/parallel_for.h"
#include "model/quantized/codebooks.h"
#include "model/quantized/gpu.h"

namespace retort {
namespace {

constexpr int64_t kValuesPerTask = 1 << 17;
// Values that the path over ATen widens at a time: their indices take four bytes each.
constexpr int64_t kAtenChunk = 1 << 24;
// 1 / 127, as bitsandbytes writes it.
constexpr float kInt8Step = 7.874015718698502e-3f;

// `first` is even, or the last value.
template <typename T>
void Widen4Bit(const uint8_t* codes, const float* table, float scale, int64_t first, int64_t end, T* out) {
  int64_t i = first;
  if (i % 2 != 0 && i < end) {
    out[i] = static_cast<T>(table[codes[i / 2] & 0xF] * scale);
    ++i;
  }
  for (; i + 1 < end; i += 2) {
    const uint8_t pair = codes[i / 2];
    out[i] = static_cast<T>(table[pair >> 4] * scale);
    out[i + 1] = static_cast<T>(table[pair & 0xF] * scale);
  }
  if (i < end) out[i] = static_cast<T>(table[codes[i / 2] >> 4] * scale);
}

template <typename T>
void Dequantise4BitOnCpu(const QuantizedMatrix& matrix, const at::Tensor& scales, at::Tensor& out) {
  const auto* codes = matrix.codes.const_data_ptr<uint8_t>();
  const float* table = CodesOf(matrix.type).data();
  const auto* scale = scales.const_data_ptr<float>();
  auto* values = out.mutable_data_ptr<T>();
  const int64_t blocks_per_task = std::max<int64_t>(1, kValuesPerTask / matrix.block);
  ParallelFor(matrix.blocks(), blocks_per_task, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * matrix.block;
      Widen4Bit(codes, table, scale[b], first, std::min(first + matrix.block, matrix.numel()), values);
    }
  });
}

template <typename T>
void DequantiseInt8OnCpu(const QuantizedMatrix& matrix, at::Tensor& out) {
  const auto* codes = matrix.codes.const_data_ptr<int8_t>();
  const auto* scales = matrix.scales.const_data_ptr<float>();
  auto* values = out.mutable_data_ptr<T>();
  ParallelFor(matrix.rows, std::max<int64_t>(1, kValuesPerTask / std::max<int64_t>(1, matrix.columns)),
              [&](int64_t begin, int64_t end) {
                for (int64_t row = begin; row < end; ++row) {
                  const float scale = scales[row];
                  for (int64_t i = row * matrix.columns; i < (row + 1) * matrix.columns; ++i) {
                    values[i] = static_cast<T>(static_cast<float>(codes[i]) * scale * kInt8Step);
                  }
                }
              });
}

template <typename T>
void DequantiseOnCpu(const QuantizedMatrix& matrix, at::Tensor& out) {
  if (matrix.type == QuantType::kInt8) {
    DequantiseInt8OnCpu<T>(matrix, out);
  } else {
    Dequantise4BitOnCpu<T>(matrix, BlockScales(matrix).contiguous(), out);
  }
}

// Any device, piece by piece.
void Dequantise4BitThroughAten(const QuantizedMatrix& matrix, at::Tensor& out) {
  const std::array<float, 16>& codes = CodesOf(matrix.type);
  const at::Tensor table = at::tensor(at::ArrayRef<float>(codes.data(), codes.size())).to(out.device());
  const at::Tensor scales = BlockScales(matrix);
  const at::Tensor flat = out.view({-1});
  const int64_t step = std::max<int64_t>(1, kAtenChunk / (2 * matrix.block)) * 2 * matrix.block;
  for (int64_t first = 0; first < matrix.numel(); first += step) {
    const int64_t count = std::min(step, matrix.numel() - first);
    const at::Tensor packed = matrix.codes.narrow(0, first / 2, (count + 1) / 2);
    const at::Tensor indices = at::stack({packed.bitwise_right_shift(4), packed.bitwise_and(0xF)}, 1).view({-1});
    const at::Tensor values = table.index_select(0, indices.narrow(0, 0, count).to(at::kInt));
    const int64_t blocks = (count + matrix.block - 1) / matrix.block;
    const at::Tensor by_value =
        scales.narrow(0, first / matrix.block, blocks).repeat_interleave(matrix.block).narrow(0, 0, count);
    flat.narrow(0, first, count).copy_(values * by_value);
  }
}

}  // namespace

const char* QuantTypeName(QuantType type) {
  switch (type) {
    case QuantType::kNf4:
      return "nf4";
    case QuantType::kFp4:
      return "fp4";
    case QuantType::kInt8:
      return "int8";
  }
  return "";
}

const std::array<float, 16>& CodesOf(QuantType type) {
  RETORT_CHECK(type != QuantType::kInt8);
  return type == QuantType::kNf4 ? kNf4Codes : kFp4Codes;
}

uint64_t QuantizedMatrix::bytes() const {
  const auto of = [](const at::Tensor& tensor) { return tensor.defined() ? tensor.nbytes() : 0; };
  return of(codes) + of(scales) + of(nested.scales) + of(nested.codebook);
}

QuantizedMatrix ToDevice(const QuantizedMatrix& matrix, c10::Device device) {
  QuantizedMatrix moved = matrix;
  for (at::Tensor* tensor : {&moved.codes, &moved.scales, &moved.nested.scales, &moved.nested.codebook}) {
    if (tensor->defined()) *tensor = tensor->to(device);
  }
  return moved;
}

at::Tensor BlockScales(const QuantizedMatrix& matrix) {
  RETORT_CHECK(matrix.type != QuantType::kInt8);
  if (!matrix.double_quant()) return matrix.scales;
  const NestedScales& nested = matrix.nested;
  const at::Tensor outer = nested.scales.repeat_interleave(nested.block).narrow(0, 0, matrix.scales.size(0));
  return nested.codebook.index_select(0, matrix.scales.to(at::kInt)).mul_(outer).add_(nested.offset);
}

at::Tensor Dequantise(const QuantizedMatrix& matrix, c10::ScalarType dtype) {
  RETORT_CHECK(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf);
  at::Tensor out = at::empty({matrix.rows, matrix.columns}, matrix.codes.options().dtype(dtype));
  if (out.is_cpu()) {
    if (dtype == at::kFloat) DequantiseOnCpu<float>(matrix, out);
    if (dtype == at::kBFloat16) DequantiseOnCpu<c10::BFloat16>(matrix, out);
    if (dtype == at::kHalf) DequantiseOnCpu<c10::Half>(matrix, out);
  } else if (!DequantiseOnGpu(matrix, out)) {
    if (matrix.type == QuantType::kInt8) {
      out.copy_(matrix.codes.to(at::kFloat).mul_(matrix.scales.unsqueeze(1)).mul_(kInt8Step));
    } else {
      Dequantise4BitThroughAten(matrix, out);
    }
  }
  return out;
}

}  // namespace retort
