#include "coordinator/log_store.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

namespace retort {
namespace {

class LogStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "retort-logs-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    logs_ = std::move(*LogStore::Open(folder_, 100));
    ref_.set_task_id("job-1.train.0.0");
    ref_.set_epoch(4);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string All() { return *logs_->Read("job-1", ref_, 0, 10'000); }

  std::string folder_;
  std::unique_ptr<LogStore> logs_;
  v1::TaskRef ref_;
};

TEST_F(LogStoreTest, ReplayAddsNothingAndAGapIsRefused) {
  EXPECT_EQ(*logs_->Append("job-1", ref_, 0, "one\n"), 4);
  EXPECT_EQ(*logs_->Append("job-1", ref_, 0, "one\n"), 4);
  EXPECT_EQ(*logs_->Append("job-1", ref_, 2, "e\ntwo\n"), 8);
  EXPECT_EQ(*logs_->Append("job-1", ref_, 100, "later"), 8);
  EXPECT_EQ(All(), "one\ntwo\n");
}

TEST_F(LogStoreTest, StopsAtTheBoundWithAMarker) {
  EXPECT_EQ(*logs_->Append("job-1", ref_, 0, std::string(90, 'a')), 90);
  EXPECT_EQ(*logs_->Append("job-1", ref_, 90, std::string(50, 'b')), 140);
  EXPECT_EQ(*logs_->Append("job-1", ref_, 140, std::string(50, 'c')), 190);
  const std::string all = All();
  EXPECT_EQ(all.substr(0, 100), std::string(90, 'a') + std::string(10, 'b'));
  EXPECT_NE(all.find("log cut here"), std::string::npos);
  EXPECT_EQ(all.find('c', 100), all.find("cut"));
}

TEST_F(LogStoreTest, ListsPlacementsInTheirOrder) {
  v1::TaskRef other;
  other.set_task_id("job-1.train.0.1");
  other.set_epoch(2);
  ASSERT_TRUE(logs_->Append("job-1", ref_, 0, "x").ok());
  ASSERT_TRUE(logs_->Append("job-1", other, 0, "y").ok());
  const auto refs = logs_->List("job-1");
  ASSERT_TRUE(refs.ok());
  ASSERT_EQ(refs->size(), 2u);
  EXPECT_EQ((*refs)[0].epoch(), 2u);
  EXPECT_EQ((*refs)[1].task_id(), "job-1.train.0.0");
  EXPECT_TRUE(logs_->List("job-2")->empty());
}

TEST_F(LogStoreTest, NamesCannotLeaveTheFolder) {
  EXPECT_EQ(logs_->Append("..", ref_, 0, "x").status().code(), absl::StatusCode::kInvalidArgument);
  ref_.set_task_id("../../x");
  EXPECT_EQ(logs_->Append("job-1", ref_, 0, "x").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace retort
