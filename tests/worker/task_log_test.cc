#include "worker/task_log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "common/file.h"
#include "common/id.h"

namespace retort::worker {
namespace {

class TaskLogTest : public testing::Test {
 protected:
  ~TaskLogTest() override { unlink(path_.c_str()); }
  const std::string path_ = testing::TempDir() + "/task_log_" + RandomHex(12);
};

TEST_F(TaskLogTest, KeepsBytesAndKnowsTheLastLine) {
  auto log = TaskLog::Open(path_);
  ASSERT_TRUE(log.ok()) << log.status();
  log->Append("first\nsec");
  log->Append("ond\n\n  \n");
  EXPECT_EQ(log->LastLine(), "second");
  log->Append("cut off");
  EXPECT_EQ(log->LastLine(), "cut off");
  log->Finish();
  EXPECT_EQ(ReadFile(path_).value(), "first\nsecond\n\n  \ncut off\n");
  EXPECT_EQ(log->size_bytes(), 25);
}

TEST_F(TaskLogTest, GoesOnWhereAnEarlierOneStopped) {
  TaskLog::Open(path_)->Append("one\n");
  auto log = TaskLog::Open(path_);
  EXPECT_EQ(log->size_bytes(), 4);
  log->Append("two\n");
  EXPECT_EQ(ReadFile(path_).value(), "one\ntwo\n");
}

TEST_F(TaskLogTest, IsBoundedAndSaysSo) {
  auto log = TaskLog::Open(path_, 10);
  log->Append("12345\n");
  log->Append("67890\n");
  log->Append("last words\n");
  EXPECT_EQ(ReadFile(path_).value(), "12345\n\n[the log reached its limit of 10 bytes; later output is not kept]\n");
  EXPECT_EQ(log->LastLine(), "last words");
}

}  // namespace
}  // namespace retort::worker
