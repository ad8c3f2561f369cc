#include "common/rpc/retry.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace retort {
namespace {

class RetryTest : public testing::Test {
 protected:
  RetryTest() {
    options_.clock = &clock_;
    options_.random = [] { return 1.0; };
    options_.sleep = [this](absl::Duration wait) {
      waits_.push_back(wait);
      clock_.Advance(wait);
    };
  }
  FakeClock clock_;
  RetryOptions options_;
  std::vector<absl::Duration> waits_;
};

TEST_F(RetryTest, RepeatsWhatIsUnavailableWithGrowingWaits) {
  int calls = 0;
  const absl::Status status = CallWithRetry(
      "GetTask", options_, [&](absl::Time) { return ++calls < 5 ? absl::UnavailableError("gone") : absl::OkStatus(); });
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(calls, 5);
  EXPECT_EQ(waits_, (std::vector<absl::Duration>{absl::Milliseconds(50), absl::Milliseconds(100),
                                                 absl::Milliseconds(200), absl::Milliseconds(400)}));
}

TEST_F(RetryTest, GivesUpAtTheTotalDeadlineAndSaysHowOftenItTried) {
  int calls = 0;
  const absl::Time start = clock_.Now();
  const absl::Status status = CallWithRetry("GetTask", options_, [&](absl::Time) {
    ++calls;
    return absl::DeadlineExceededError("slow");
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LE(clock_.Now() - start, options_.total);
  EXPECT_GE(clock_.Now() - start, options_.total - options_.max_backoff);
  EXPECT_NE(std::string(status.message()).find("GetTask (gave up after " + std::to_string(calls) + " attempts"),
            std::string::npos)
      << status;
}

TEST_F(RetryTest, ReturnsOtherErrorsAtOnce) {
  int calls = 0;
  const absl::Status status = CallWithRetry("CommitTraces", options_, [&](absl::Time) {
    ++calls;
    return absl::FailedPreconditionError("fenced");
  });
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(status, absl::FailedPreconditionError("CommitTraces: fenced"));
}

TEST_F(RetryTest, CutsAttemptsToWhatIsLeft) {
  options_.total = absl::Seconds(30);
  options_.attempt = absl::Seconds(20);
  std::vector<absl::Duration> given;
  (void)CallWithRetry("x", options_, [&](absl::Time deadline) {
    given.push_back(deadline - clock_.Now());
    clock_.Advance(given.back());
    return absl::DeadlineExceededError("slow");
  });
  ASSERT_EQ(given.size(), 2u);
  EXPECT_EQ(given[0], absl::Seconds(20));
  EXPECT_EQ(given[1], absl::Seconds(10) - absl::Milliseconds(50));
}

TEST_F(RetryTest, StopsWhenCancelled) {
  bool cancelled = false;
  options_.cancelled = [&] { return cancelled; };
  int calls = 0;
  const absl::Status status = CallWithRetry("x", options_, [&](absl::Time) {
    cancelled = ++calls == 3;
    return absl::UnavailableError("gone");
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(waits_.size(), 2u);
}

TEST_F(RetryTest, JittersWithinHalfTheBackoff) {
  options_.random = [] { return 0.0; };
  int calls = 0;
  ASSERT_TRUE(CallWithRetry("x", options_, [&](absl::Time) {
                return ++calls < 2 ? absl::UnknownError("Stream removed") : absl::OkStatus();
              }).ok());
  EXPECT_EQ(waits_, std::vector<absl::Duration>{absl::Milliseconds(25)});
}

}  // namespace
}  // namespace retort
