#include <cstring>

#include "common/check.h"
#include "model/gguf/blocks.h"
#include "model/gguf/quants.h"

namespace retort::gguf {
namespace {

// Reads `count / per_block` blocks, aligned or not, and hands each to `unpack(block, target)`.
template <typename Block, int kValues, typename Unpack>
void EachBlock(const void* source, int64_t count, float* y, Unpack&& unpack) {
  const auto* bytes = static_cast<const char*>(source);
  for (int64_t i = 0; i < count / kValues; ++i, bytes += sizeof(Block), y += kValues) {
    Block block;
    std::memcpy(&block, bytes, sizeof(Block));
    unpack(block, y);
  }
}

void UnpackQ4_0(const BlockQ4_0& b, float* y) {
  const float d = HalfToFloat(b.d);
  for (int j = 0; j < 16; ++j) {
    y[j] = static_cast<float>((b.qs[j] & 0xF) - 8) * d;
    y[j + 16] = static_cast<float>((b.qs[j] >> 4) - 8) * d;
  }
}

void UnpackQ4_1(const BlockQ4_1& b, float* y) {
  const float d = HalfToFloat(b.d);
  const float m = HalfToFloat(b.m);
  for (int j = 0; j < 16; ++j) {
    y[j] = static_cast<float>(b.qs[j] & 0xF) * d + m;
    y[j + 16] = static_cast<float>(b.qs[j] >> 4) * d + m;
  }
}

struct FiveBits {
  int low;   // value j
  int high;  // value j + 16
};
FiveBits Five(const uint8_t* qs, uint32_t qh, int j) {
  return {(qs[j] & 0xF) | static_cast<int>(((qh >> j) << 4) & 0x10),
          (qs[j] >> 4) | static_cast<int>((qh >> (j + 12)) & 0x10)};
}

void UnpackQ5_0(const BlockQ5_0& b, float* y) {
  const float d = HalfToFloat(b.d);
  uint32_t qh;
  std::memcpy(&qh, b.qh, sizeof(qh));
  for (int j = 0; j < 16; ++j) {
    const FiveBits q = Five(b.qs, qh, j);
    y[j] = static_cast<float>(q.low - 16) * d;
    y[j + 16] = static_cast<float>(q.high - 16) * d;
  }
}

void UnpackQ5_1(const BlockQ5_1& b, float* y) {
  const float d = HalfToFloat(b.d);
  const float m = HalfToFloat(b.m);
  uint32_t qh;
  std::memcpy(&qh, b.qh, sizeof(qh));
  for (int j = 0; j < 16; ++j) {
    const FiveBits q = Five(b.qs, qh, j);
    y[j] = static_cast<float>(q.low) * d + m;
    y[j + 16] = static_cast<float>(q.high) * d + m;
  }
}

void UnpackQ8_0(const BlockQ8_0& b, float* y) {
  const float d = HalfToFloat(b.d);
  for (int j = 0; j < 32; ++j) y[j] = static_cast<float>(b.qs[j]) * d;
}

void UnpackQ2_K(const BlockQ2_K& b, float* y) {
  const float d = HalfToFloat(b.d);
  const float min = HalfToFloat(b.dmin);
  const uint8_t* scale = b.scales;
  for (const uint8_t* q = b.qs; q < b.qs + 64; q += 32) {
    for (int shift = 0; shift < 8; shift += 2) {
      for (int half = 0; half < 32; half += 16, ++scale) {
        const float dl = d * static_cast<float>(*scale & 0xF);
        const float ml = min * static_cast<float>(*scale >> 4);
        for (int l = 0; l < 16; ++l) *y++ = dl * static_cast<float>((q[half + l] >> shift) & 3) - ml;
      }
    }
  }
}

void UnpackQ3_K(const BlockQ3_K& b, float* y) {
  const float d_all = HalfToFloat(b.d);
  int scales[16];
  for (int j = 0; j < 16; ++j) {
    const int low = j < 8 ? b.scales[j] & 0xF : b.scales[j - 8] >> 4;
    scales[j] = (low | ((b.scales[8 + j % 4] >> (2 * (j / 4))) & 3) << 4) - 32;
  }
  const int* scale = scales;
  uint8_t mask = 1;
  for (const uint8_t* q = b.qs; q < b.qs + 64; q += 32) {
    for (int shift = 0; shift < 8; shift += 2, mask = static_cast<uint8_t>(mask << 1)) {
      for (int half = 0; half < 32; half += 16, ++scale) {
        const float dl = d_all * static_cast<float>(*scale);
        for (int l = half; l < half + 16; ++l) {
          *y++ = dl * static_cast<float>(((q[l] >> shift) & 3) - ((b.hmask[l] & mask) != 0 ? 0 : 4));
        }
      }
    }
  }
}

void UnpackQ4_K(const BlockQ4_K& b, float* y) {
  const float d = HalfToFloat(b.d);
  const float min = HalfToFloat(b.dmin);
  const uint8_t* q = b.qs;
  for (int j = 0; j < 8; j += 2, q += 32) {
    const ScaleMin first = UnpackScaleMin(j, b.scales);
    const ScaleMin second = UnpackScaleMin(j + 1, b.scales);
    const float d1 = d * static_cast<float>(first.scale);
    const float m1 = min * static_cast<float>(first.min);
    const float d2 = d * static_cast<float>(second.scale);
    const float m2 = min * static_cast<float>(second.min);
    for (int l = 0; l < 32; ++l) *y++ = d1 * static_cast<float>(q[l] & 0xF) - m1;
    for (int l = 0; l < 32; ++l) *y++ = d2 * static_cast<float>(q[l] >> 4) - m2;
  }
}

void UnpackQ5_K(const BlockQ5_K& b, float* y) {
  const float d = HalfToFloat(b.d);
  const float min = HalfToFloat(b.dmin);
  const uint8_t* q = b.qs;
  for (int j = 0; j < 8; j += 2, q += 32) {
    const ScaleMin first = UnpackScaleMin(j, b.scales);
    const ScaleMin second = UnpackScaleMin(j + 1, b.scales);
    const float d1 = d * static_cast<float>(first.scale);
    const float m1 = min * static_cast<float>(first.min);
    const float d2 = d * static_cast<float>(second.scale);
    const float m2 = min * static_cast<float>(second.min);
    for (int l = 0; l < 32; ++l) *y++ = d1 * static_cast<float>((q[l] & 0xF) + ((b.qh[l] >> j) & 1) * 16) - m1;
    for (int l = 0; l < 32; ++l) *y++ = d2 * static_cast<float>((q[l] >> 4) + ((b.qh[l] >> (j + 1)) & 1) * 16) - m2;
  }
}

void UnpackQ6_K(const BlockQ6_K& b, float* y) {
  const float d = HalfToFloat(b.d);
  const uint8_t* ql = b.ql;
  const uint8_t* qh = b.qh;
  const int8_t* scale = b.scales;
  for (int n = 0; n < kSuperBlock; n += 128, y += 128, ql += 64, qh += 32, scale += 8) {
    for (int l = 0; l < 32; ++l) {
      const int is = l / 16;
      const int q1 = ((ql[l] & 0xF) | ((qh[l] & 3) << 4)) - 32;
      const int q2 = ((ql[l + 32] & 0xF) | (((qh[l] >> 2) & 3) << 4)) - 32;
      const int q3 = ((ql[l] >> 4) | (((qh[l] >> 4) & 3) << 4)) - 32;
      const int q4 = ((ql[l + 32] >> 4) | (((qh[l] >> 6) & 3) << 4)) - 32;
      y[l] = d * static_cast<float>(scale[is]) * static_cast<float>(q1);
      y[l + 32] = d * static_cast<float>(scale[is + 2]) * static_cast<float>(q2);
      y[l + 64] = d * static_cast<float>(scale[is + 4]) * static_cast<float>(q3);
      y[l + 96] = d * static_cast<float>(scale[is + 6]) * static_cast<float>(q4);
    }
  }
}

}  // namespace

bool CanDequantise(TensorType type) {
  switch (type) {
    case TensorType::kF32:
    case TensorType::kF16:
    case TensorType::kBF16:
    case TensorType::kQ4_0:
    case TensorType::kQ4_1:
    case TensorType::kQ5_0:
    case TensorType::kQ5_1:
    case TensorType::kQ8_0:
    case TensorType::kQ2_K:
    case TensorType::kQ3_K:
    case TensorType::kQ4_K:
    case TensorType::kQ5_K:
    case TensorType::kQ6_K:
      return true;
    default:
      return false;
  }
}

void Dequantise(TensorType type, const void* source, int64_t count, float* target) {
  RETORT_CHECK(count % InfoOf(type).block_elements == 0);
  switch (type) {
    case TensorType::kF32:
      std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
      return;
    case TensorType::kF16:
      return EachBlock<uint16_t, 1>(source, count, target, [](uint16_t half, float* y) { *y = HalfToFloat(half); });
    case TensorType::kBF16:
      return EachBlock<uint16_t, 1>(source, count, target, [](uint16_t brain, float* y) {
        const uint32_t bits = uint32_t{brain} << 16;
        std::memcpy(y, &bits, sizeof(bits));
      });
    case TensorType::kQ4_0:
      return EachBlock<BlockQ4_0, 32>(source, count, target, UnpackQ4_0);
    case TensorType::kQ4_1:
      return EachBlock<BlockQ4_1, 32>(source, count, target, UnpackQ4_1);
    case TensorType::kQ5_0:
      return EachBlock<BlockQ5_0, 32>(source, count, target, UnpackQ5_0);
    case TensorType::kQ5_1:
      return EachBlock<BlockQ5_1, 32>(source, count, target, UnpackQ5_1);
    case TensorType::kQ8_0:
      return EachBlock<BlockQ8_0, 32>(source, count, target, UnpackQ8_0);
    case TensorType::kQ2_K:
      return EachBlock<BlockQ2_K, 256>(source, count, target, UnpackQ2_K);
    case TensorType::kQ3_K:
      return EachBlock<BlockQ3_K, 256>(source, count, target, UnpackQ3_K);
    case TensorType::kQ4_K:
      return EachBlock<BlockQ4_K, 256>(source, count, target, UnpackQ4_K);
    case TensorType::kQ5_K:
      return EachBlock<BlockQ5_K, 256>(source, count, target, UnpackQ5_K);
    case TensorType::kQ6_K:
      return EachBlock<BlockQ6_K, 256>(source, count, target, UnpackQ6_K);
    default:
      RETORT_CHECK(CanDequantise(type));
  }
}

}  // namespace retort::gguf
