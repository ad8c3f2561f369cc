#include "worker/state_folder.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>

#include "common/id.h"

namespace retort::worker {
namespace {

class StateFolderTest : public testing::Test {
 protected:
  ~StateFolderTest() override { std::filesystem::remove_all(path_); }
  const std::string path_ = testing::TempDir() + "/state_folder_" + RandomHex(12);
};

TEST_F(StateFolderTest, KeepsTheWorkersIdAndKeepsOthersOut) {
  std::string id;
  {
    const auto first = OpenStateFolder(path_);
    ASSERT_TRUE(first.ok()) << first.status();
    id = first->worker_id;
    const auto second = OpenStateFolder(path_);
    EXPECT_TRUE(absl::IsAlreadyExists(second.status())) << second.status();
  }
  const auto again = OpenStateFolder(path_);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->worker_id, id);
  struct stat info = {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
}

TEST_F(StateFolderTest, RefusesADamagedId) {
  ASSERT_TRUE(MakeFolders(path_).ok());
  ASSERT_TRUE(WriteFileAtomically(path_ + "/worker_id", "../../x\n").ok());
  EXPECT_TRUE(absl::IsInvalidArgument(OpenStateFolder(path_).status()));
}

}  // namespace
}  // namespace retort::worker
