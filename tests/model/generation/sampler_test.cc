#include "model/generation/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "common/philox.h"

namespace retort::internal {
namespace {

std::vector<float> SomeLogits(size_t size, uint64_t seed) {
  std::vector<float> logits(size);
  for (size_t i = 0; i < size; ++i) logits[i] = static_cast<float>(20.0 * UniformFromPhilox(PhiloxAt(seed, i)) - 10.0);
  return logits;
}

int32_t Sample(const std::vector<float>& logits, double temperature, double top_p, uint64_t key, int64_t position) {
  SamplerScratch scratch;
  const auto token = SampleToken(logits, temperature, top_p, key, position, scratch);
  EXPECT_TRUE(token.ok()) << token.status();
  return *token;
}

// The definition, by sorting everything.
int32_t Reference(const std::vector<float>& logits, double temperature, double top_p, uint64_t key, int64_t position) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  std::vector<double> mass;
  double total = 0.0;
  for (const int32_t id : order) {
    mass.push_back(std::exp((static_cast<double>(logits[static_cast<size_t>(id)]) -
                             static_cast<double>(logits[static_cast<size_t>(order[0])])) /
                            temperature));
    total += mass.back();
  }
  size_t kept = 0;
  double sum = 0.0;
  while (kept < order.size() && (kept == 0 || sum < top_p * total)) sum += mass[kept++];
  const double target = UniformFromPhilox(PhiloxAt(key, static_cast<uint64_t>(position))) * sum;
  double walked = 0.0;
  for (size_t i = 0; i < kept; ++i) {
    walked += mass[i];
    if (target < walked) return order[i];
  }
  return order[kept - 1];
}

TEST(SampleToken, GreedyTakesTheFirstOfTheLargest) { EXPECT_EQ(Sample({1.0F, 3.0F, -2.0F, 3.0F}, 0.0, 1.0, 1, 0), 1); }

TEST(SampleToken, NucleusAgreesWithSortingEverything) {
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const std::vector<float> logits = SomeLogits(500, seed);
    for (const double temperature : {0.3, 0.6, 1.0, 3.0}) {
      for (const double top_p : {1e-6, 0.5, 0.9, 0.95, 0.999}) {
        ASSERT_EQ(Sample(logits, temperature, top_p, seed, 5), Reference(logits, temperature, top_p, seed, 5))
            << "seed " << seed << " temperature " << temperature << " top_p " << top_p;
      }
    }
  }
}

TEST(SampleToken, NucleusWithEqualLogitsTakesLowIds) {
  const std::vector<float> logits(10, 1.0F);
  for (int64_t position = 0; position < 200; ++position) EXPECT_LT(Sample(logits, 1.0, 0.45, 9, position), 5);
}

TEST(SampleToken, FrequenciesFollowTheSoftmax) {
  const std::vector<float> logits = {0.0F, std::log(2.0F), std::log(5.0F)};
  std::vector<int> counts(3);
  for (int64_t position = 0; position < 8000; ++position)
    ++counts[static_cast<size_t>(Sample(logits, 1.0, 1.0, 3, position))];
  EXPECT_NEAR(counts[0], 1000, 150);
  EXPECT_NEAR(counts[1], 2000, 200);
  EXPECT_NEAR(counts[2], 5000, 230);
}

TEST(SampleToken, DependsOnKeyAndPosition) {
  const std::vector<float> logits(1000, 0.0F);
  EXPECT_EQ(Sample(logits, 1.0, 1.0, 1, 2), Sample(logits, 1.0, 1.0, 1, 2));
  EXPECT_NE(Sample(logits, 1.0, 1.0, 1, 2), Sample(logits, 1.0, 1.0, 1, 3));
  EXPECT_NE(Sample(logits, 1.0, 1.0, 1, 2), Sample(logits, 1.0, 1.0, 2, 2));
}

TEST(SampleToken, RefusesWhatIsNotFinite) {
  SamplerScratch scratch;
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    const std::vector<float> logits = {0.0F, bad, 1.0F};
    EXPECT_EQ(SampleToken(logits, 0.0, 1.0, 0, 0, scratch).status().code(), absl::StatusCode::kInternal);
  }
}

}  // namespace
}  // namespace retort::internal
