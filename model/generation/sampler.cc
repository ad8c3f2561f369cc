#include "model/generation/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/philox.h"

namespace retort::internal {
namespace {

// Slices of the range below the largest logit, kSliceWidth each, for finding the nucleus without sorting the
// vocabulary.
constexpr int64_t kSlices = 512;
constexpr double kSliceWidth = 1.0 / 16;

// Beyond the last slice a token's probability is below e^-32 of the largest.
int64_t SliceOf(double below) { return std::min<int64_t>(kSlices - 1, static_cast<int64_t>(below / kSliceWidth)); }

}  // namespace

absl::StatusOr<int32_t> SampleToken(absl::Span<const float> logits, double temperature, double top_p, uint64_t key,
                                    int64_t position, SamplerScratch& scratch) {
  float highest = -std::numeric_limits<float>::infinity();
  int32_t best = -1;
  bool finite = true;
  for (size_t i = 0; i < logits.size(); ++i) {
    finite = finite && logits[i] - logits[i] == 0.0F;
    if (logits[i] > highest) {
      highest = logits[i];
      best = static_cast<int32_t>(i);
    }
  }
  if (!finite || best < 0) {
    return absl::InternalError("the model's output is not finite: are its weights damaged, or its dtype too narrow?");
  }
  if (temperature <= 0.0) return best;

  const auto below = [&](size_t i) {
    return (static_cast<double>(highest) - static_cast<double>(logits[i])) / temperature;
  };
  std::vector<double>& mass = scratch.mass;
  mass.resize(logits.size());
  double slice_mass[kSlices] = {};
  double total = 0.0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double distance = below(i);
    mass[i] = std::exp(-distance);
    slice_mass[SliceOf(distance)] += mass[i];
    total += mass[i];
  }
  const double uniform = UniformFromPhilox(PhiloxAt(key, static_cast<uint64_t>(position)));

  std::vector<int32_t>& candidates = scratch.candidates;
  candidates.clear();
  double kept = 0.0;
  if (top_p >= 1.0) {
    for (size_t i = 0; i < logits.size(); ++i) candidates.push_back(static_cast<int32_t>(i));
    kept = total;
  } else {
    int64_t last_slice = 0;
    for (double sum = slice_mass[0]; sum < top_p * total && last_slice + 1 < kSlices;) sum += slice_mass[++last_slice];
    // One slice more than the sum says: it is rounded in another order than the one that decides below.
    last_slice = std::min(last_slice + 1, kSlices - 1);
    for (size_t i = 0; i < logits.size(); ++i)
      if (SliceOf(below(i)) <= last_slice) candidates.push_back(static_cast<int32_t>(i));
    std::sort(candidates.begin(), candidates.end(), [&](int32_t a, int32_t b) {
      const float la = logits[static_cast<size_t>(a)];
      const float lb = logits[static_cast<size_t>(b)];
      return la != lb ? la > lb : a < b;
    });
    size_t count = 0;
    while (count < candidates.size() && (count == 0 || kept < top_p * total))
      kept += mass[static_cast<size_t>(candidates[count++])];
    candidates.resize(count);
  }
  const double target = uniform * kept;
  double sum = 0.0;
  for (const int32_t candidate : candidates) {
    sum += mass[static_cast<size_t>(candidate)];
    if (target < sum) return candidate;
  }
  return candidates.back();
}

}  // namespace retort::internal
