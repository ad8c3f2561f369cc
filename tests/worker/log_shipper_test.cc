#include "worker/log_shipper.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "absl/time/clock.h"
#include "common/file.h"
#include "common/id.h"

namespace retort::worker {
namespace {

// What a coordinator keeps: bytes below an offset it has are ignored, a gap is refused by asking for the missing ones.
class Receiver {
 public:
  absl::StatusOr<int64_t> Take(const TaskKey& task, int64_t offset_bytes, const std::string& data) {
    std::lock_guard<std::mutex> lock(mu_);
    ++calls_;
    if (failures_ > 0) {
      --failures_;
      return failure_;
    }
    std::string& log = logs_[task];
    if (offset_bytes > static_cast<int64_t>(log.size())) return static_cast<int64_t>(log.size());
    const size_t known = log.size() - static_cast<size_t>(offset_bytes);
    if (known < data.size()) log += data.substr(known);
    if (lost_replies_ > 0) {
      --lost_replies_;
      return absl::DeadlineExceededError("the reply was lost");
    }
    return static_cast<int64_t>(log.size());
  }
  std::string log(const TaskKey& task) {
    std::lock_guard<std::mutex> lock(mu_);
    return logs_[task];
  }
  void Fail(int times, absl::Status failure) {
    std::lock_guard<std::mutex> lock(mu_);
    failures_ = times;
    failure_ = failure;
  }
  void LoseReplies(int times) {
    std::lock_guard<std::mutex> lock(mu_);
    lost_replies_ = times;
  }
  void Forget() {
    std::lock_guard<std::mutex> lock(mu_);
    logs_.clear();
  }

 private:
  std::mutex mu_;
  std::map<TaskKey, std::string> logs_;
  absl::Status failure_;
  int failures_ = 0;
  int lost_replies_ = 0;
  int calls_ = 0;
};

class LogShipperTest : public testing::Test {
 protected:
  ~LogShipperTest() override { unlink(path_.c_str()); }
  void Write(const std::string& contents) {
    ASSERT_TRUE(WriteFileAtomically(path_, contents).ok());
    shipper_.Grown(task_, path_, static_cast<int64_t>(contents.size()));
  }
  const std::string path_ = testing::TempDir() + "/log_shipper_" + RandomHex(12);
  const TaskKey task_{"job.train.0.0", 3};
  Receiver receiver_;
  LogShipper shipper_{
      [this](const TaskKey& task, int64_t offset, std::string data) { return receiver_.Take(task, offset, data); }};
};

TEST_F(LogShipperTest, SendsEverythingInPieces) {
  std::string contents;
  for (int i = 0; contents.size() < (1 << 20); ++i) contents += "line " + std::to_string(i) + "\n";
  Write(contents);
  EXPECT_TRUE(shipper_.Flush(task_, absl::Seconds(10)));
  EXPECT_TRUE(receiver_.log(task_) == contents);
}

TEST_F(LogShipperTest, NothingIsDoubledWhenRepliesAreLost) {
  receiver_.LoseReplies(2);
  Write("a\nb\n");
  EXPECT_TRUE(shipper_.Flush(task_, absl::Seconds(10)));
  EXPECT_EQ(receiver_.log(task_), "a\nb\n");
}

TEST_F(LogShipperTest, ACoordinatorThatLostItsCopyGetsItAgain) {
  Write("a\n");
  while (receiver_.log(task_).empty()) std::this_thread::yield();
  receiver_.Forget();
  Write("a\nb\n");
  EXPECT_TRUE(shipper_.Flush(task_, absl::Seconds(10)));
  EXPECT_EQ(receiver_.log(task_), "a\nb\n");
}

TEST_F(LogShipperTest, GivesUpOnARefusalAndWaitsForNoLonger) {
  receiver_.Fail(1'000'000, absl::NotFoundError("no such task"));
  Write("a\n");
  EXPECT_FALSE(shipper_.Flush(task_, absl::Seconds(10)));
  shipper_.Forget(task_);
  receiver_.Fail(1'000'000, absl::UnavailableError("away"));
  shipper_.Grown(task_, path_, 2);
  EXPECT_FALSE(shipper_.Flush(task_, absl::Milliseconds(20)));
}

TEST_F(LogShipperTest, AFullDiskAtTheOtherEndAndABrokenStreamAreOutlived) {
  receiver_.Fail(1, absl::UnknownError("Stream removed"));
  Write("a\n");
  EXPECT_TRUE(shipper_.Flush(task_, absl::Seconds(10)));
  receiver_.Fail(1'000'000, absl::ResourceExhaustedError("no space"));
  Write("a\nb\n");
  // Only a log that was given up is flushed to no purpose before its time.
  EXPECT_FALSE(shipper_.Flush(task_, absl::Milliseconds(100)));
  const absl::Time start = absl::Now();
  EXPECT_FALSE(shipper_.Flush(task_, absl::Milliseconds(100)));
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(90));
}

TEST_F(LogShipperTest, AnUnknownTaskIsFinished) { EXPECT_TRUE(shipper_.Flush({"other", 1}, absl::ZeroDuration())); }

}  // namespace
}  // namespace retort::worker
