// K-quants: scales found by weighted least squares around the obvious ones. Every operation stands in the reference's
// order and precision, for another order gives other bits.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/check.h"
#include "model/gguf/blocks.h"
#include "model/gguf/quants.h"

namespace retort::gguf {
namespace {

constexpr float kAllZero = 1e-15F;

// Rounds to nearest, ties to even, by the addition's own rounding; |value| < 2^22.
int Nearest(float value) {
  const float shifted = value + 12582912.0F;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  return (bits & 0x007FFFFF) - 0x00400000;
}

int NearestWithin(float value, int low, int high) { return std::max(low, std::min(high, Nearest(value))); }

// How a group of 32 values is fitted to scale * level + minimum.
struct FitOptions {
  int levels;        // the highest level
  float first_step;  // tried inverse scales are (levels + first_step + step * i) / range
  float step;
  int steps;
};

struct Fit {
  float scale;
  float minus_min;
};

// Finds scale and minimum of 32 values, and their levels, minimising the weighted square error.
Fit FitScaleAndMin(const float* x, const float* weights, const FitOptions& options, uint8_t* levels) {
  constexpr int kCount = 32;
  float min = x[0];
  float max = x[0];
  float sum_w = weights[0];
  float sum_x = sum_w * x[0];
  for (int i = 1; i < kCount; ++i) {
    if (x[i] < min) min = x[i];
    if (x[i] > max) max = x[i];
    sum_w += weights[i];
    sum_x += weights[i] * x[i];
  }
  if (min > 0) min = 0;
  if (max == min) {
    std::fill_n(levels, kCount, uint8_t{0});
    return {0.0F, -min};
  }
  float inverse = static_cast<float>(options.levels) / (max - min);
  float scale = 1 / inverse;
  float best_error = 0;
  for (int i = 0; i < kCount; ++i) {
    levels[i] = static_cast<uint8_t>(NearestWithin(inverse * (x[i] - min), 0, options.levels));
    const float difference = scale * static_cast<float>(levels[i]) + min - x[i];
    best_error += weights[i] * (difference * difference);
  }
  uint8_t tried[kCount];  // against the best minimum so far, as the reference has it
  for (int step = 0; step <= options.steps; ++step) {
    inverse = (options.first_step + options.step * static_cast<float>(step) + static_cast<float>(options.levels)) /
              (max - min);
    float sum_l = 0;
    float sum_l2 = 0;
    float sum_xl = 0;
    for (int i = 0; i < kCount; ++i) {
      const int level = NearestWithin(inverse * (x[i] - min), 0, options.levels);
      tried[i] = static_cast<uint8_t>(level);
      const float w = weights[i];
      const auto l = static_cast<float>(level);
      sum_l += w * l;
      sum_l2 += w * l * l;
      sum_xl += w * l * x[i];
    }
    const float determinant = sum_w * sum_l2 - sum_l * sum_l;
    if (!(determinant > 0)) continue;
    float this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    float this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    if (this_min > 0) {
      this_min = 0;
      this_scale = sum_xl / sum_l2;
    }
    float error = 0;
    for (int i = 0; i < kCount; ++i) {
      const float difference = this_scale * static_cast<float>(tried[i]) + this_min - x[i];
      error += weights[i] * (difference * difference);
    }
    if (error < best_error) {
      std::copy_n(tried, kCount, levels);
      best_error = error;
      scale = this_scale;
      min = this_min;
    }
  }
  return {scale, -min};
}

// Finds a scale for 16 values at levels -32..31 (stored from 0), weighting errors by the values' squares.
float FitScale(const float* x, uint8_t* levels) {
  constexpr int kCount = 16;
  constexpr int kMax = 32;
  float magnitude = 0;
  float max = 0;
  for (int i = 0; i < kCount; ++i) {
    if (std::fabs(x[i]) > magnitude) {
      magnitude = std::fabs(x[i]);
      max = x[i];
    }
  }
  if (magnitude < kAllZero) {
    std::fill_n(levels, kCount, uint8_t{0});
    return 0.0F;
  }
  float inverse = -kMax / max;
  float sum_lx = 0;
  float sum_l2 = 0;
  for (int i = 0; i < kCount; ++i) {
    const int level = NearestWithin(inverse * x[i], -kMax, kMax - 1);
    levels[i] = static_cast<uint8_t>(level + kMax);
    const float w = x[i] * x[i];
    const auto l = static_cast<float>(level);
    sum_lx += w * x[i] * l;
    sum_l2 += w * l * l;
  }
  float scale = sum_l2 != 0 ? sum_lx / sum_l2 : 0.0F;
  float best = scale * sum_lx;
  for (int step = -9; step <= 9; ++step) {
    if (step == 0) continue;
    inverse = -(kMax + 0.1F * static_cast<float>(step)) / max;
    sum_lx = sum_l2 = 0;
    for (int i = 0; i < kCount; ++i) {
      const auto l = static_cast<float>(NearestWithin(inverse * x[i], -kMax, kMax - 1));
      const float w = x[i] * x[i];
      sum_lx += w * x[i] * l;
      sum_l2 += w * l * l;
    }
    if (sum_l2 > 0 && sum_lx * sum_lx > best * sum_l2) {
      for (int i = 0; i < kCount; ++i) {
        levels[i] = static_cast<uint8_t>(kMax + NearestWithin(inverse * x[i], -kMax, kMax - 1));
      }
      scale = sum_lx / sum_l2;
      best = scale * sum_lx;
    }
  }
  return scale;
}

// What Q4_K and Q5_K share: fits the eight groups, packs their scales into the block, and gives the levels that the
// packed (rounded) scales ask for.
template <typename Block>
void FitSuperBlock(const float* x, const FitOptions& options, Block& y, uint8_t* levels) {
  float scales[8];
  float mins[8];
  float max_scale = 0;
  float max_min = 0;
  for (int j = 0; j < 8; ++j) {
    const float* group = x + 32 * j;
    float sum_x2 = 0;
    for (int l = 0; l < 32; ++l) sum_x2 += group[l] * group[l];
    const float root_mean_square = std::sqrt(sum_x2 / 32);
    float weights[32];
    for (int l = 0; l < 32; ++l) weights[l] = root_mean_square + std::fabs(group[l]);
    const Fit fit = FitScaleAndMin(group, weights, options, levels + 32 * j);
    scales[j] = fit.scale;
    mins[j] = fit.minus_min;
    if (scales[j] > max_scale) max_scale = scales[j];
    if (mins[j] > max_min) max_min = mins[j];
  }
  const float inverse_scale = max_scale > 0 ? 63.0F / max_scale : 0.0F;
  const float inverse_min = max_min > 0 ? 63.0F / max_min : 0.0F;
  for (int j = 0; j < 8; ++j) {
    const auto scale = std::min<uint8_t>(63, static_cast<uint8_t>(Nearest(inverse_scale * scales[j])));
    const auto min = std::min<uint8_t>(63, static_cast<uint8_t>(Nearest(inverse_min * mins[j])));
    if (j < 4) {
      y.scales[j] = scale;
      y.scales[j + 4] = min;
    } else {
      y.scales[j + 4] = static_cast<uint8_t>((scale & 0xF) | (min & 0xF) << 4);
      y.scales[j - 4] = static_cast<uint8_t>(y.scales[j - 4] | (scale >> 4) << 6);
      y.scales[j] = static_cast<uint8_t>(y.scales[j] | (min >> 4) << 6);
    }
  }
  y.d = FloatToHalf(max_scale / 63.0F);
  y.dmin = FloatToHalf(max_min / 63.0F);
  for (int j = 0; j < 8; ++j) {
    const ScaleMin packed = UnpackScaleMin(j, y.scales);
    const float d = HalfToFloat(y.d) * static_cast<float>(packed.scale);
    if (d == 0.0F) continue;
    const float min = HalfToFloat(y.dmin) * static_cast<float>(packed.min);
    for (int i = 32 * j; i < 32 * j + 32; ++i) {
      levels[i] = static_cast<uint8_t>(NearestWithin((x[i] + min) / d, 0, options.levels));
    }
  }
}

void PackQ6_K(const float* x, BlockQ6_K& y) {
  uint8_t levels[kSuperBlock];
  float scales[16];
  float max_scale = 0;
  float magnitude = 0;
  for (int j = 0; j < 16; ++j) {
    scales[j] = FitScale(x + 16 * j, levels + 16 * j);
    if (std::fabs(scales[j]) > magnitude) {
      magnitude = std::fabs(scales[j]);
      max_scale = scales[j];
    }
  }
  if (magnitude < kAllZero) {
    std::memset(&y, 0, sizeof(y));
    return;
  }
  const float inverse = -128.0F / max_scale;
  y.d = FloatToHalf(1 / inverse);
  for (int j = 0; j < 16; ++j) y.scales[j] = static_cast<int8_t>(std::min(127, Nearest(inverse * scales[j])));
  for (int j = 0; j < 16; ++j) {
    const float d = HalfToFloat(y.d) * static_cast<float>(y.scales[j]);
    if (d == 0.0F) continue;
    for (int i = 16 * j; i < 16 * j + 16; ++i) levels[i] = static_cast<uint8_t>(NearestWithin(x[i] / d, -32, 31) + 32);
  }
  for (int half = 0; half < 2; ++half) {
    const uint8_t* l = levels + 128 * half;
    for (int i = 0; i < 32; ++i) {
      y.ql[64 * half + i] = static_cast<uint8_t>((l[i] & 0xF) | (l[i + 64] & 0xF) << 4);
      y.ql[64 * half + i + 32] = static_cast<uint8_t>((l[i + 32] & 0xF) | (l[i + 96] & 0xF) << 4);
      y.qh[32 * half + i] =
          static_cast<uint8_t>(l[i] >> 4 | (l[i + 32] >> 4) << 2 | (l[i + 64] >> 4) << 4 | (l[i + 96] >> 4) << 6);
    }
  }
}

}  // namespace

void QuantiseQ4_K(const float* x, int64_t blocks, BlockQ4_K* y) {
  uint8_t levels[kSuperBlock];
  for (int64_t i = 0; i < blocks; ++i, x += kSuperBlock) {
    FitSuperBlock(x, {.levels = 15, .first_step = -1.0F, .step = 0.1F, .steps = 20}, y[i], levels);
    for (int j = 0; j < 4; ++j) {
      for (int l = 0; l < 32; ++l) {
        y[i].qs[32 * j + l] = static_cast<uint8_t>(levels[64 * j + l] | levels[64 * j + l + 32] << 4);
      }
    }
  }
}

void QuantiseQ5_K(const float* x, int64_t blocks, BlockQ5_K* y) {
  uint8_t levels[kSuperBlock];
  for (int64_t i = 0; i < blocks; ++i, x += kSuperBlock) {
    FitSuperBlock(x, {.levels = 31, .first_step = -0.5F, .step = 0.1F, .steps = 15}, y[i], levels);
    std::memset(y[i].qh, 0, sizeof(y[i].qh));
    for (int j = 0; j < 4; ++j) {
      for (int l = 0; l < 32; ++l) {
        const uint8_t low = levels[64 * j + l];
        const uint8_t high = levels[64 * j + l + 32];
        y[i].qs[32 * j + l] = static_cast<uint8_t>((low & 0xF) | (high & 0xF) << 4);
        y[i].qh[l] = static_cast<uint8_t>(y[i].qh[l] | (low >> 4) << (2 * j) | (high >> 4) << (2 * j + 1));
      }
    }
  }
}

void QuantiseQ6_K(const float* x, int64_t blocks, BlockQ6_K* y) {
  for (int64_t i = 0; i < blocks; ++i, x += kSuperBlock) PackQ6_K(x, y[i]);
}

}  // namespace retort::gguf
