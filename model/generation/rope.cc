#include "model/generation/rope.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace retort::internal {
namespace {

// theta^(2i / dim), [dim / 2]
at::Tensor Periods(const RopeConfig& rope) {
  const at::Tensor exponents = at::arange(0, rope.dim, 2, at::kLong).to(at::kFloat) / rope.dim;
  return at::pow(at::Scalar(rope.theta), exponents);
}

at::Tensor Llama3Frequencies(const RopeConfig& rope, const at::Tensor& frequencies) {
  const auto original = static_cast<double>(rope.original_max_position_embeddings);
  const double low_wavelength = original / rope.low_freq_factor;
  const double high_wavelength = original / rope.high_freq_factor;
  const at::Tensor wavelengths = 2.0 * std::numbers::pi / frequencies;
  const at::Tensor scaled = at::where(wavelengths > low_wavelength, frequencies / rope.factor, frequencies);
  const at::Tensor smooth =
      (original / wavelengths - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  const at::Tensor smoothed = (1.0 - smooth) * scaled / rope.factor + smooth * scaled;
  const at::Tensor between = at::logical_and(wavelengths >= high_wavelength, wavelengths <= low_wavelength);
  return at::where(between, smoothed, scaled);
}

at::Tensor YarnFrequencies(const RopeConfig& rope, const at::Tensor& periods) {
  // The dimension whose wave turns `rotations` times within the original context.
  const auto dimension = [&](double rotations) {
    return static_cast<double>(rope.dim) *
           std::log(static_cast<double>(rope.original_max_position_embeddings) / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(rope.theta));
  };
  double low = dimension(rope.beta_fast);
  double high = dimension(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(rope.dim - 1));
  if (low == high) high += 0.001;
  const at::Tensor ramp = ((at::arange(rope.dim / 2, at::kFloat) - low) / (high - low)).clamp(0.0, 1.0);
  const at::Tensor keep = 1.0 - ramp;
  return 1.0 / (rope.factor * periods) * (1.0 - keep) + 1.0 / periods * keep;
}

// [dim / 2]
at::Tensor InverseFrequencies(const RopeConfig& rope, bool long_factors) {
  const at::Tensor periods = Periods(rope);
  switch (rope.type) {
    case RopeType::kDefault:
      return 1.0 / periods;
    case RopeType::kLinear:
      return 1.0 / periods / rope.factor;
    case RopeType::kLlama3:
      return Llama3Frequencies(rope, 1.0 / periods);
    case RopeType::kYarn:
      return YarnFrequencies(rope, periods);
    case RopeType::kLongrope: {
      const at::Tensor factors = at::tensor(long_factors ? rope.long_factor : rope.short_factor, at::kFloat);
      return 1.0 / (factors * periods);
    }
  }
  return {};
}

}  // namespace

RopeTable MakeRopeTable(const ModelConfig& config, int64_t positions, bool long_factors) {
  const RopeConfig& rope = config.rope;
  const at::Tensor angles =
      at::outer(at::arange(positions, at::kLong).to(at::kFloat), InverseFrequencies(rope, long_factors)).contiguous();
  return {at::cos(angles).mul_(rope.attention_factor), at::sin(angles).mul_(rope.attention_factor)};
}

const RopeTable& RopeTables::For(int64_t tokens, int64_t positions) {
  const bool long_factors = config_.rope.UsesLongFactors(tokens);
  RopeTable& table = tables_[long_factors ? 1 : 0];
  const int64_t known = table.cos.defined() ? table.cos.size(0) : 0;
  if (positions > known) table = MakeRopeTable(config_, std::max(positions, 2 * known), long_factors);
  return table;
}

RopeTable RopeTables::ForSamples(const std::vector<int64_t>& offsets, int64_t longest) {
  std::vector<at::Tensor> cos, sin;
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    const int64_t length = offsets[i + 1] - offsets[i];
    const RopeTable& table = For(length, longest);
    cos.push_back(table.cos.narrow(0, 0, length));
    sin.push_back(table.sin.narrow(0, 0, length));
  }
  return {at::cat(cos, 0), at::cat(sin, 0)};
}

}  // namespace retort::internal
