#include "model/gguf/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace retort::gguf {
namespace {

constexpr double kTolerance = 1e-5;

bool Same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](float x, float y) { return std::fabs(x - y) <= kTolerance * std::fabs(y); });
}

}  // namespace

std::vector<float> Llama3Factors(const Llama3Scaling& scaling, double theta, int64_t rotary_dim) {
  const auto context = static_cast<float>(scaling.original_context);
  const auto low = static_cast<float>(scaling.low_freq_factor);
  const auto high = static_cast<float>(scaling.high_freq_factor);
  const auto factor = static_cast<float>(scaling.factor);
  std::vector<float> factors;
  for (int64_t i = 0; i < rotary_dim / 2; ++i) {
    const float frequency =
        1.0F / std::pow(static_cast<float>(theta), static_cast<float>(2 * i) / static_cast<float>(rotary_dim));
    const float wavelength = 2.0F * std::numbers::pi_v<float> / frequency;
    if (wavelength < context / high) {
      factors.push_back(1.0F);
    } else if (wavelength > context / low) {
      factors.push_back(factor);
    } else {
      const float smooth = (context / wavelength - low) / (high - low);
      factors.push_back(1.0F / ((1.0F - smooth) / factor + smooth));
    }
  }
  return factors;
}

std::optional<Llama3Scaling> FindLlama3Scaling(const std::vector<float>& factors, double theta, int64_t rotary_dim,
                                               int64_t original_context_hint) {
  if (factors.empty() || factors.size() != static_cast<size_t>(rotary_dim / 2)) return std::nullopt;
  Llama3Scaling scaling;
  scaling.factor = *std::max_element(factors.begin(), factors.end());
  std::vector<int64_t> contexts = {original_context_hint, 8192};
  for (int64_t context = 16; context <= int64_t{1} << 20; context *= 2) contexts.push_back(context);
  for (const int64_t context : contexts) {
    if (context <= 0) continue;
    scaling.original_context = context;
    if (Same(factors, Llama3Factors(scaling, theta, rotary_dim))) return scaling;
  }
  // Between the two bounds 1 / factor is linear in the frequency; two points give the bounds. A common scale of
  // context, low and high changes nothing, so low is taken as 1.
  std::vector<std::pair<double, double>> points;  // frequency, smoothness
  for (size_t i = 0; i < factors.size(); ++i) {
    const double rest = 1.0 / scaling.factor;
    const double smooth = (1.0 / factors[i] - rest) / (1.0 - rest);
    const double frequency = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(rotary_dim));
    if (smooth > 1e-4 && smooth < 1 - 1e-4) points.emplace_back(frequency, smooth);
  }
  if (points.size() < 2) return std::nullopt;
  const auto& [f0, s0] = points.front();
  const auto& [f1, s1] = points.back();
  const double slope = (s0 - s1) / (f0 - f1);
  const double offset = s0 - slope * f0;  // -low / (high - low)
  if (!(slope > 0) || !(offset < 0)) return std::nullopt;
  scaling.high_freq_factor = 1.0 - 1.0 / offset;
  scaling.original_context =
      std::llround(slope * 2 * std::numbers::pi * (scaling.high_freq_factor - scaling.low_freq_factor));
  if (scaling.original_context <= 0) return std::nullopt;
  if (!Same(factors, Llama3Factors(scaling, theta, rotary_dim))) return std::nullopt;
  return scaling;
}

}  // namespace retort::gguf
