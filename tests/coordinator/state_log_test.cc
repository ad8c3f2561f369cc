#include "coordinator/state_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace retort {
namespace {

using ::testing::HasSubstr;

class StateLogTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "retort-log-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<StateLog> Open() {
    auto log = StateLog::Open(folder_ + "/state");
    EXPECT_TRUE(log.ok()) << log.status();
    return log.ok() ? std::move(*log) : nullptr;
  }
  static std::map<std::string, std::string> Records(const StateLog& log) {
    std::map<std::string, std::string> records;
    EXPECT_TRUE(log.ForEach([&](absl::string_view key, absl::string_view value) {
                     records[std::string(key)] = std::string(value);
                     return absl::OkStatus();
                   })
                    .ok());
    return records;
  }
  std::string NewestLogFile() const {
    std::string newest;
    for (const auto& entry : std::filesystem::directory_iterator(folder_ + "/state")) {
      if (entry.path().extension() == ".log" && entry.path().string() > newest && entry.file_size() > 0)
        newest = entry.path().string();
    }
    return newest;
  }

  std::string folder_;
};

TEST_F(StateLogTest, WhatIsDurableIsThereAfterReopening) {
  {
    auto log = Open();
    log->Append({{"a", "1"}, {"b", "2"}});
    const uint64_t last = log->Append({{"a", "3"}, {"b", "", true}});
    ASSERT_TRUE(log->WaitDurable(last).ok());
  }
  EXPECT_EQ(Records(*Open()), (std::map<std::string, std::string>{{"a", "3"}}));
}

TEST_F(StateLogTest, ASecondOneIsTurnedAway) {
  auto log = Open();
  const auto second = StateLog::Open(folder_ + "/state");
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("another coordinator uses"));
}

TEST_F(StateLogTest, ARecordThatACrashCutShortIsDroppedAlone) {
  {
    auto log = Open();
    ASSERT_TRUE(log->WaitDurable(log->Append({{"kept", std::string(1000, 'k')}})).ok());
    ASSERT_TRUE(log->WaitDurable(log->Append({{"cut", std::string(1000, 'c')}})).ok());
  }
  const std::string file = NewestLogFile();
  std::filesystem::resize_file(file, std::filesystem::file_size(file) - 10);
  const auto records = Records(*Open());
  EXPECT_EQ(records.count("kept"), 1u);
  EXPECT_EQ(records.count("cut"), 0u);
}

TEST_F(StateLogTest, DamageInTheMiddleIsAnErrorNotALoss) {
  {
    auto log = Open();
    for (int i = 0; i < 20; ++i) {
      ASSERT_TRUE(log->WaitDurable(log->Append({{absl::StrCat("key", i), std::string(1000, 'x')}})).ok());
    }
  }
  std::fstream file(NewestLogFile(), std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(5000);
  file.write("damage", 6);
  file.close();
  const auto log = StateLog::Open(folder_ + "/state");
  EXPECT_EQ(log.status().code(), absl::StatusCode::kDataLoss) << log.status();
}

TEST_F(StateLogTest, ManyWritersShareFsyncs) {
  auto log = Open();
  std::vector<std::thread> writers;
  for (int w = 0; w < 4; ++w) {
    writers.emplace_back([&, w] {
      for (int i = 0; i < 50; ++i) {
        ASSERT_TRUE(log->WaitDurable(log->Append({{absl::StrCat(w, "-", i), "v"}})).ok());
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(Records(*log).size(), 200u);
}

}  // namespace
}  // namespace retort
