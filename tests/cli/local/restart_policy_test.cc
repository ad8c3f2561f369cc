#include "cli/local/restart_policy.h"

#include <gtest/gtest.h>

namespace retort::cli {
namespace {

TEST(RestartPolicy, RestartsAtOnceThenBacksOff) {
  RestartPolicy policy;
  absl::Time now = absl::FromUnixSeconds(1'000);
  std::vector<int64_t> delays_ms;
  for (int i = 0; i < 11; ++i) {
    policy.Started(now);
    now += absl::Milliseconds(20);
    const absl::Time next = policy.Ended(now);
    delays_ms.push_back(absl::ToInt64Milliseconds(next - now));
    now = next;
  }
  EXPECT_EQ(delays_ms, std::vector<int64_t>({0, 0, 0, 100, 200, 400, 800, 1600, 3200, 5000, 5000}));
}

TEST(RestartPolicy, ALongLifeIsForgiven) {
  RestartPolicy policy;
  absl::Time now = absl::FromUnixSeconds(1'000);
  for (int i = 0; i < 6; ++i) {
    policy.Started(now);
    policy.Ended(now);
  }
  EXPECT_FALSE(policy.last_life_was_long());
  policy.Started(now);
  now += absl::Seconds(11);
  EXPECT_EQ(policy.Ended(now), now);
  EXPECT_TRUE(policy.last_life_was_long());
  EXPECT_EQ(policy.quick_deaths(), 1);
}

}  // namespace
}  // namespace retort::cli
