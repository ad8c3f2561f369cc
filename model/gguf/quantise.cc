#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/check.h"
#include "model/gguf/blocks.h"
#include "model/gguf/quants.h"

namespace retort::gguf {
namespace {

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// The value of the largest magnitude, with its sign; the first of several.
float SignedMax(const float* x, int count) {
  float magnitude = 0.0F;
  float max = 0.0F;
  for (int j = 0; j < count; ++j) {
    if (magnitude < std::fabs(x[j])) {
      magnitude = std::fabs(x[j]);
      max = x[j];
    }
  }
  return max;
}

uint8_t Level(float scaled, int highest) {
  return static_cast<uint8_t>(std::min(highest, static_cast<int>(static_cast<int8_t>(scaled))));
}

void PackQ4_0(const float* x, BlockQ4_0& y) {
  const float d = SignedMax(x, 32) / -8;
  const float inverse = d != 0.0F ? 1.0F / d : 0.0F;
  y.d = FloatToHalf(d);
  for (int j = 0; j < 16; ++j) {
    y.qs[j] = static_cast<uint8_t>(Level(x[j] * inverse + 8.5F, 15) | Level(x[j + 16] * inverse + 8.5F, 15) << 4);
  }
}

struct Range {
  float min;
  float max;
};
Range RangeOf(const float* x, int count) {
  Range range = {FLT_MAX, -FLT_MAX};
  for (int j = 0; j < count; ++j) {
    if (x[j] < range.min) range.min = x[j];
    if (x[j] > range.max) range.max = x[j];
  }
  return range;
}

void PackQ4_1(const float* x, BlockQ4_1& y) {
  const Range range = RangeOf(x, 32);
  const float d = (range.max - range.min) / 15;
  const float inverse = d != 0.0F ? 1.0F / d : 0.0F;
  y.d = FloatToHalf(d);
  y.m = FloatToHalf(range.min);
  for (int j = 0; j < 16; ++j) {
    y.qs[j] = static_cast<uint8_t>(Level((x[j] - range.min) * inverse + 0.5F, 15) |
                                   Level((x[j + 16] - range.min) * inverse + 0.5F, 15) << 4);
  }
}

// Puts the low four bits of a pair into `qs`, the fifth bits into `qh`.
template <typename Block>
void PutFive(Block& y, uint32_t& qh, int j, uint32_t low, uint32_t high) {
  y.qs[j] = static_cast<uint8_t>((low & 0xF) | (high & 0xF) << 4);
  qh |= ((low & 0x10U) >> 4) << j;
  qh |= ((high & 0x10U) >> 4) << (j + 16);
}

void PackQ5_0(const float* x, BlockQ5_0& y) {
  const float d = SignedMax(x, 32) / -16;
  const float inverse = d != 0.0F ? 1.0F / d : 0.0F;
  y.d = FloatToHalf(d);
  uint32_t qh = 0;
  for (int j = 0; j < 16; ++j) {
    PutFive(y, qh, j, Level(x[j] * inverse + 16.5F, 31), Level(x[j + 16] * inverse + 16.5F, 31));
  }
  std::memcpy(y.qh, &qh, sizeof(qh));
}

void PackQ5_1(const float* x, BlockQ5_1& y) {
  const Range range = RangeOf(x, 32);
  const float d = (range.max - range.min) / 31;
  const float inverse = d != 0.0F ? 1.0F / d : 0.0F;
  y.d = FloatToHalf(d);
  y.m = FloatToHalf(range.min);
  uint32_t qh = 0;
  for (int j = 0; j < 16; ++j) {
    // NOLINTBEGIN(bugprone-incorrect-roundings): ggml's own, to the bit
    PutFive(y, qh, j, static_cast<uint8_t>((x[j] - range.min) * inverse + 0.5F),
            static_cast<uint8_t>((x[j + 16] - range.min) * inverse + 0.5F));
    // NOLINTEND(bugprone-incorrect-roundings)
  }
  std::memcpy(y.qh, &qh, sizeof(qh));
}

void PackQ8_0(const float* x, BlockQ8_0& y) {
  float magnitude = 0.0F;
  for (int j = 0; j < 32; ++j) magnitude = std::max(magnitude, std::fabs(x[j]));
  const float d = magnitude / 127;
  const float inverse = d != 0.0F ? 1.0F / d : 0.0F;
  y.d = FloatToHalf(d);
  for (int j = 0; j < 32; ++j) y.qs[j] = static_cast<int8_t>(std::roundf(x[j] * inverse));
}

template <typename Block, typename Pack>
void EachBlock(const float* source, int64_t count, void* target, Pack&& pack) {
  auto* bytes = static_cast<char*>(target);
  for (int64_t i = 0; i < count / 32; ++i, source += 32, bytes += sizeof(Block)) {
    Block block;
    pack(source, block);
    std::memcpy(bytes, &block, sizeof(Block));
  }
}

void StoreEach(const float* source, int64_t count, void* target, uint16_t (*convert)(float)) {
  auto* bytes = static_cast<char*>(target);
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t value = convert(source[i]);
    std::memcpy(bytes + 2 * i, &value, sizeof(value));
  }
}

}  // namespace

float HalfToFloat(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000U} << 16;
  const uint32_t exponent = half >> 10 & 0x1FU;
  const uint32_t mantissa = half & 0x3FFU;
  if (exponent == 31) return FromBits(sign | 0x7F800000U | mantissa << 13);
  if (exponent != 0) return FromBits(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24F;
  return sign != 0 ? -magnitude : magnitude;
}

uint16_t FloatToHalf(float value) {
  const uint32_t bits = Bits(value);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000U);
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<uint16_t>(sign | 0x7E00U);   // NaN
  if (magnitude >= 0x477FF000U) return static_cast<uint16_t>(sign | 0x7C00U);  // 65520 and above round to infinity
  if (magnitude < 0x38800000U) {
    // Subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the lowest bits.
    return static_cast<uint16_t>(sign | (Bits(FromBits(magnitude) + 0.5F) - Bits(0.5F)));
  }
  const uint32_t rounded = magnitude + 0xFFFU + (magnitude >> 13 & 1U);
  return static_cast<uint16_t>(sign | ((rounded >> 13) - (112U << 10)));
}

uint16_t FloatToBfloat16(float value) {
  const uint32_t bits = Bits(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<uint16_t>(bits >> 16 | 64U);
  return static_cast<uint16_t>((bits + 0x7FFFU + (bits >> 16 & 1U)) >> 16);
}

bool AllFinite(TensorType type, const float* values, int64_t count) {
  float limit = std::numeric_limits<float>::infinity();
  if (type == TensorType::kQ8_0) {
    limit = 127 * 65504.0F;  // its scale is a half
  } else if (type != TensorType::kF32 && type != TensorType::kBF16) {
    limit = 65520.0F;
  }
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) finite &= std::fabs(values[i]) < limit;
  return finite;
}

bool CanQuantise(TensorType type) {
  return CanDequantise(type) && type != TensorType::kQ2_K && type != TensorType::kQ3_K;
}

void Quantise(TensorType type, const float* source, int64_t count, void* target) {
  RETORT_CHECK(count % InfoOf(type).block_elements == 0);
  switch (type) {
    case TensorType::kF32:
      std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
      return;
    case TensorType::kF16:
      return StoreEach(source, count, target, FloatToHalf);
    case TensorType::kBF16:
      return StoreEach(source, count, target, FloatToBfloat16);
    case TensorType::kQ4_0:
      return EachBlock<BlockQ4_0>(source, count, target, PackQ4_0);
    case TensorType::kQ4_1:
      return EachBlock<BlockQ4_1>(source, count, target, PackQ4_1);
    case TensorType::kQ5_0:
      return EachBlock<BlockQ5_0>(source, count, target, PackQ5_0);
    case TensorType::kQ5_1:
      return EachBlock<BlockQ5_1>(source, count, target, PackQ5_1);
    case TensorType::kQ8_0:
      return EachBlock<BlockQ8_0>(source, count, target, PackQ8_0);
    case TensorType::kQ4_K:
      return QuantiseQ4_K(source, count / kSuperBlock, static_cast<BlockQ4_K*>(target));
    case TensorType::kQ5_K:
      return QuantiseQ5_K(source, count / kSuperBlock, static_cast<BlockQ5_K*>(target));
    case TensorType::kQ6_K:
      return QuantiseQ6_K(source, count / kSuperBlock, static_cast<BlockQ6_K*>(target));
    default:
      RETORT_CHECK(CanQuantise(type));
  }
}

}  // namespace retort::gguf
