#include "model/quantized/quantise.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"
#include "model/parallel_for.h"
#include "model/quantized/codebooks.h"
#include "model/quantized/gpu.h"
#include "model/torch_status.h"

namespace retort {
namespace {

constexpr int64_t kValuesPerTask = 1 << 17;
constexpr int64_t kNestedBlock = 256;
// What bitsandbytes divides by instead of less.
constexpr float kSmallestScale = 1e-38f;

// Places of `count` scaled values among the bounds: how many lie below.
void Places(const Ordered4Bit& ordered, const float* scaled, int64_t count, uint8_t* places) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = scaled[i];
    uint8_t place = 0;
    for (const float bound : ordered.bounds) place = static_cast<uint8_t>(place + (bound < value ? 1 : 0));
    places[i] = place;
  }
}

template <typename T>
float LargestMagnitude(const T* values, int64_t count) {
  float largest = 0.0f;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(static_cast<float>(values[i])));
  return largest;
}

template <typename T>
bool AllFinite(const T* values, int64_t count) {
  // A NaN or an infinity makes the sum of x * 0 a NaN.
  float sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<float>(values[i]) * 0.0f;
  return sum == 0.0f;
}

// One block, whose codes begin with the high half of out[0].
template <typename T>
float QuantiseBlock(const Ordered4Bit& ordered, const T* values, int64_t count, int64_t block, float* scaled,
                    uint8_t* places, uint8_t* out) {
  float scale = LargestMagnitude(values, count);
  const bool whole = count == block;
  if (!whole) scale = std::max(scale, kSmallestScale);
  const float inverse = 1.0f / std::max(scale, kSmallestScale);
  for (int64_t i = 0; i < count; ++i) {
    const float value = static_cast<float>(values[i]);
    scaled[i] = std::clamp(whole ? value * inverse : value / scale, -1.0f, 1.0f);
  }
  // The last byte of an odd number of values: bitsandbytes appends a zero.
  if (count % 2 != 0) scaled[count] = 0.0f;
  const int64_t even = count + count % 2;
  Places(ordered, scaled, even, places);
  for (int64_t i = 0; i < even; i += 2) {
    out[i / 2] = static_cast<uint8_t>(ordered.codes[places[i]] << 4 | ordered.codes[places[i + 1]]);
  }
  return scale;
}

template <typename T>
bool Quantise4BitOnCpu(const at::Tensor& weight, const QuantiseOptions& options, at::Tensor& codes,
                       at::Tensor& scales) {
  const Ordered4Bit ordered = OrderOf(options.type);
  const int64_t count = weight.numel();
  const auto* values = weight.const_data_ptr<T>();
  auto* out = codes.mutable_data_ptr<uint8_t>();
  auto* scale = scales.mutable_data_ptr<float>();
  std::atomic<bool> finite = true;
  ParallelFor(scales.size(0), std::max<int64_t>(1, kValuesPerTask / options.block), [&](int64_t begin, int64_t end) {
    std::vector<float> scaled(static_cast<size_t>(options.block + 1));
    std::vector<uint8_t> places(static_cast<size_t>(options.block + 1));
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * options.block;
      const int64_t length = std::min(options.block, count - first);
      if (!AllFinite(values + first, length)) finite = false;
      scale[b] =
          QuantiseBlock(ordered, values + first, length, options.block, scaled.data(), places.data(), out + first / 2);
    }
  });
  return finite;
}

// The nearest code by a table of 65,536 places, as bitsandbytes looks it up.
const std::vector<uint8_t>& DynamicPlaces() {
  static const std::vector<uint8_t> places = [] {
    const float* codebook = DynamicCodebook().const_data_ptr<float>();
    std::vector<uint8_t> made(65536);
    int code = 0;
    for (int i = 0; i < 65536; ++i) {
      const float value = -1.0f + (2.0f * static_cast<float>(i)) / 65535.0f;
      while (code < 255 && 0.5f * (codebook[code] + codebook[code + 1]) < value) ++code;
      made[static_cast<size_t>(i)] = static_cast<uint8_t>(code);
    }
    return made;
  }();
  return places;
}

// `scales` [blocks] f32 on the CPU -> the matrix's scales and nested scales.
void QuantiseScales(const at::Tensor& scales, QuantizedMatrix& matrix) {
  const at::Tensor offset = scales.mean();
  const at::Tensor centred = (scales - offset).contiguous();
  const int64_t count = centred.numel();
  matrix.scales = at::empty({count}, at::kByte);
  matrix.nested.scales = at::empty({(count + kNestedBlock - 1) / kNestedBlock}, at::kFloat);
  matrix.nested.codebook = DynamicCodebook();
  matrix.nested.block = kNestedBlock;
  matrix.nested.offset = offset.item<float>();
  const std::vector<uint8_t>& places = DynamicPlaces();
  const auto* values = centred.const_data_ptr<float>();
  auto* codes = matrix.scales.mutable_data_ptr<uint8_t>();
  auto* outer = matrix.nested.scales.mutable_data_ptr<float>();
  for (int64_t b = 0; b < matrix.nested.scales.size(0); ++b) {
    const int64_t first = b * kNestedBlock;
    const int64_t end = std::min(count, first + kNestedBlock);
    outer[b] = LargestMagnitude(values + first, end - first);
    if (outer[b] == 0.0f) {
      std::fill(codes + first, codes + end, uint8_t{0});
      continue;
    }
    const float inverse = 1.0f / outer[b];
    for (int64_t i = first; i < end; ++i) {
      const float value = std::clamp(values[i] * inverse, -1.0f, 1.0f);
      const float place = (value + 1.0f) * 0.5f * 65535.0f + 0.5f;  // rounded to f32 before it is cut off
      codes[i] = places[static_cast<uint16_t>(place)];
    }
  }
}

absl::Status NotFinite() {
  return absl::InvalidArgumentError("holds values that are not finite: it cannot be quantised");
}

absl::StatusOr<QuantizedMatrix> Quantise4Bit(const at::Tensor& weight, const QuantiseOptions& options) {
  QuantizedMatrix matrix{.type = options.type,
                         .rows = weight.size(0),
                         .columns = weight.size(1),
                         .block = options.block,
                         .source_dtype = weight.scalar_type()};
  matrix.codes = at::empty({(weight.numel() + 1) / 2}, weight.options().dtype(at::kByte));
  matrix.scales = at::empty({matrix.blocks()}, weight.options().dtype(at::kFloat));
  if (!weight.is_cuda() || !Quantise4BitOnGpu(weight, options, matrix.codes, matrix.scales)) {
    const at::Tensor host = weight.cpu();
    at::Tensor codes = at::empty(matrix.codes.sizes(), at::kByte);
    at::Tensor scales = at::empty(matrix.scales.sizes(), at::kFloat);
    bool finite = false;
    if (host.scalar_type() == at::kFloat) finite = Quantise4BitOnCpu<float>(host, options, codes, scales);
    if (host.scalar_type() == at::kBFloat16) finite = Quantise4BitOnCpu<c10::BFloat16>(host, options, codes, scales);
    if (host.scalar_type() == at::kHalf) finite = Quantise4BitOnCpu<c10::Half>(host, options, codes, scales);
    if (!finite) return NotFinite();
    matrix.codes = codes.to(weight.device());
    matrix.scales = scales.to(weight.device());
  } else if (!at::isfinite(matrix.scales).all().item<bool>()) {
    return NotFinite();
  }
  if (!options.double_quant) return matrix;
  const at::Tensor scales = matrix.scales.cpu();
  QuantiseScales(scales, matrix);
  return ToDevice(matrix, weight.device());
}

// The nearest whole number, halves to the even one, for magnitudes below 2^22.
float Rounded(float value) {
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: the sum has no room for fractions
  return (value + kShift) - kShift;
}

// `wide` [rows, columns], f32.
void QuantiseRowsOnCpu(const at::Tensor& wide, at::Tensor& codes, at::Tensor& scales) {
  const int64_t columns = wide.size(1);
  const auto* values = wide.const_data_ptr<float>();
  auto* out = codes.mutable_data_ptr<int8_t>();
  auto* scale = scales.mutable_data_ptr<float>();
  ParallelFor(wide.size(0), std::max<int64_t>(1, kValuesPerTask / columns), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* from = values + row * columns;
      int8_t* to = out + row * columns;
      scale[row] = LargestMagnitude(from, columns);
      if (scale[row] == 0.0f) {
        std::fill(to, to + columns, int8_t{0});
        continue;
      }
      const float inverse = 1.0f / scale[row] * 127.0f;  // as libtorch divides a number by a tensor
      for (int64_t i = 0; i < columns; ++i) {
        to[i] = static_cast<int8_t>(Rounded(from[i] * inverse));
      }
    }
  });
}

absl::StatusOr<QuantizedMatrix> QuantiseInt8(const at::Tensor& weight) {
  QuantizedMatrix matrix{.type = QuantType::kInt8,
                         .rows = weight.size(0),
                         .columns = weight.size(1),
                         .source_dtype = weight.scalar_type()};
  const at::Tensor half = weight.to(at::kHalf).contiguous();
  if (!at::isfinite(half).all().item<bool>()) {
    return absl::InvalidArgumentError(
        "holds values that are not finite, or too large for float16, which int8 quantisation goes through");
  }
  matrix.codes = at::empty(half.sizes(), half.options().dtype(at::kChar));
  matrix.scales = at::empty({half.size(0)}, half.options().dtype(at::kFloat));
  if (!half.is_cuda() || !QuantiseRowsOnGpu(half, matrix.codes, matrix.scales)) {
    const at::Tensor host = half.cpu().to(at::kFloat);
    at::Tensor codes = at::empty(host.sizes(), at::kChar);
    at::Tensor scales = at::empty({host.size(0)}, at::kFloat);
    QuantiseRowsOnCpu(host, codes, scales);
    matrix.codes = codes.to(weight.device());
    matrix.scales = scales.to(weight.device());
  }
  return matrix;
}

}  // namespace

absl::StatusOr<QuantizedMatrix> Quantise(const at::Tensor& weight, const QuantiseOptions& options) {
  RETORT_CHECK(weight.dim() == 2 && weight.numel() > 0 && options.block > 0 && options.block % 2 == 0);
  return CatchTorchErrors("quantise", [&]() -> absl::StatusOr<QuantizedMatrix> {
    const at::Tensor plain = weight.contiguous();
    return options.type == QuantType::kInt8 ? QuantiseInt8(plain) : Quantise4Bit(plain, options);
  });
}

}  // namespace retort
