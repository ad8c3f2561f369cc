#include "worker/exit_reporter.h"

#include <gtest/gtest.h>

#include <mutex>
#include <string>
#include <vector>

namespace retort::worker {
namespace {

v1::TaskExit ExitOf(const std::string& task_id) {
  v1::TaskExit exit;
  exit.mutable_ref()->set_task_id(task_id);
  return exit;
}

class ExitReporterTest : public testing::Test {
 protected:
  void Note(const std::string& what) {
    std::lock_guard<std::mutex> lock(mu_);
    events_.push_back(what);
  }
  std::mutex mu_;
  std::vector<std::string> events_;
  std::vector<absl::Status> answers_;  // taken from the back
  ExitReporter reporter_{{.send =
                              [this](const v1::TaskExit& exit) {
                                Note("send " + exit.ref().task_id());
                                std::lock_guard<std::mutex> lock(mu_);
                                if (answers_.empty()) return absl::OkStatus();
                                const absl::Status answer = answers_.back();
                                answers_.pop_back();
                                return answer;
                              },
                          .before_send = [this](const v1::TaskExit& exit) { Note("log " + exit.ref().task_id()); },
                          .after_send = [this](const v1::TaskExit& exit) { Note("done " + exit.ref().task_id()); }}};
};

TEST_F(ExitReporterTest, RepeatsUntilHeardInOrder) {
  answers_ = {absl::UnknownError("Stream removed"), absl::NotFoundError("register")};
  reporter_.Report(ExitOf("a"));
  reporter_.Report(ExitOf("b"));
  ASSERT_TRUE(reporter_.Drain(absl::Seconds(10)));
  EXPECT_EQ(events_, std::vector<std::string>({"log a", "send a", "log a", "send a", "log a", "send a", "done a",
                                               "log b", "send b", "done b"}));
}

TEST_F(ExitReporterTest, ARefusalEndsIt) {
  answers_ = {absl::InvalidArgumentError("no such task")};
  reporter_.Report(ExitOf("a"));
  ASSERT_TRUE(reporter_.Drain(absl::Seconds(10)));
  EXPECT_EQ(events_, std::vector<std::string>({"log a", "send a", "done a"}));
}

TEST_F(ExitReporterTest, StopsWhileTheCoordinatorIsAway) {
  answers_.assign(1'000, absl::UnavailableError("away"));
  reporter_.Report(ExitOf("a"));
  EXPECT_FALSE(reporter_.Drain(absl::Milliseconds(10)));
}

}  // namespace
}  // namespace retort::worker
