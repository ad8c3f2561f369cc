#include "model/generation/rope.h"

#include <ATen/ATen.h>

#include <cmath>
#include <numbers>

namespace retort::internal {
namespace {

// [head_dim / 2]
at::Tensor InverseFrequencies(const ModelConfig& config) {
  const at::Tensor exponents = at::arange(0, config.head_dim, 2, at::kLong).to(at::kFloat) / config.head_dim;
  at::Tensor frequencies = 1.0 / at::pow(at::Scalar(config.rope_theta), exponents);
  if (!config.rope_scaling.has_value()) return frequencies;
  const Llama3RopeScaling& scaling = *config.rope_scaling;
  const auto original = static_cast<double>(scaling.original_max_position_embeddings);
  const double low_wavelength = original / scaling.low_freq_factor;
  const double high_wavelength = original / scaling.high_freq_factor;
  const at::Tensor wavelengths = 2.0 * std::numbers::pi / frequencies;
  const at::Tensor scaled = at::where(wavelengths > low_wavelength, frequencies / scaling.factor, frequencies);
  const at::Tensor smooth =
      (original / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor);
  const at::Tensor smoothed = (1.0 - smooth) * scaled / scaling.factor + smooth * scaled;
  const at::Tensor between = at::logical_and(wavelengths >= high_wavelength, wavelengths <= low_wavelength);
  return at::where(between, smoothed, scaled);
}

}  // namespace

RopeTable MakeRopeTable(const ModelConfig& config, int64_t positions) {
  const at::Tensor angles =
      at::outer(at::arange(positions, at::kLong).to(at::kFloat), InverseFrequencies(config)).contiguous();
  return {at::cos(angles), at::sin(angles)};
}

}  // namespace retort::internal
