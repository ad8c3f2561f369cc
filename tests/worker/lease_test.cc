#include "worker/lease.h"

#include <gtest/gtest.h>

namespace retort::worker {
namespace {

TEST(Lease, EndsOneTermAfterTheLastAnsweredMessageWasSent) {
  const absl::Time start = absl::FromUnixSeconds(100);
  Lease lease;
  lease.set_ttl(absl::Seconds(10));
  lease.Renew(start);
  EXPECT_FALSE(lease.IsLostNow(start + absl::Seconds(9)));
  lease.Renew(start + absl::Seconds(5));
  lease.Renew(start + absl::Seconds(4));  // an answer that came late
  EXPECT_FALSE(lease.IsLostNow(start + absl::Seconds(14)));
  EXPECT_TRUE(lease.IsLostNow(start + absl::Seconds(15)));
}

TEST(Lease, IsLostOnceUntilRenewed) {
  const absl::Time start = absl::FromUnixSeconds(100);
  Lease lease;
  lease.set_ttl(absl::Seconds(10));
  lease.Renew(start);
  EXPECT_TRUE(lease.IsLostNow(start + absl::Seconds(20)));
  EXPECT_FALSE(lease.IsLostNow(start + absl::Seconds(21)));
  lease.Renew(start + absl::Seconds(22));
  EXPECT_FALSE(lease.IsLostNow(start + absl::Seconds(31)));
  EXPECT_TRUE(lease.IsLostNow(start + absl::Seconds(32)));
}

TEST(Lease, WithoutATermNothingIsLost) {
  Lease lease;
  EXPECT_FALSE(lease.IsLostNow(absl::FromUnixSeconds(1'000'000)));
  lease.Renew(absl::FromUnixSeconds(1));
  EXPECT_FALSE(lease.IsLostNow(absl::FromUnixSeconds(1'000'000)));
  Lease never_renewed;
  never_renewed.set_ttl(absl::Seconds(1));
  EXPECT_FALSE(never_renewed.IsLostNow(absl::FromUnixSeconds(1'000'000)));
}

}  // namespace
}  // namespace retort::worker
