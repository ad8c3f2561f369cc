#include "worker/task_folders.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "common/file.h"
#include "common/id.h"

namespace retort::worker {
namespace {

using Strings = std::vector<std::string>;

TaskFolder Folder(const std::string& name, int seconds, int64_t size_bytes) {
  return {.name = name, .modified_at = absl::FromUnixSeconds(seconds), .size_bytes = size_bytes};
}

TEST(ChooseTaskFoldersToDelete, KeepsTheNewest) {
  EXPECT_EQ(ChooseTaskFoldersToDelete({Folder("old", 1, 5), Folder("new", 3, 5), Folder("mid", 2, 5)}, {},
                                      {.keep = 2, .max_bytes = 100}),
            Strings({"old"}));
}

TEST(ChooseTaskFoldersToDelete, BoundsTheBytes) {
  EXPECT_EQ(ChooseTaskFoldersToDelete({Folder("old", 1, 5), Folder("big", 2, 96), Folder("new", 3, 5)}, {},
                                      {.keep = 9, .max_bytes = 100}),
            Strings({"big", "old"}));
}

TEST(ChooseTaskFoldersToDelete, TheNewestGoesLast) {
  EXPECT_EQ(ChooseTaskFoldersToDelete({Folder("old", 1, 5), Folder("huge", 3, 500), Folder("mid", 2, 5)}, {},
                                      {.keep = 9, .max_bytes = 100}),
            Strings({"mid", "old"}));
}

TEST(ChooseTaskFoldersToDelete, NeverTouchesWhatIsInUse) {
  EXPECT_EQ(ChooseTaskFoldersToDelete({Folder("running", 1, 500), Folder("ended", 2, 5)}, {"running"},
                                      {.keep = 0, .max_bytes = 0}),
            Strings({"ended"}));
}

TEST(CleanTaskFolders, DeletesFromDisk) {
  const std::string root = testing::TempDir() + "/task_folders_" + RandomHex(12);
  ASSERT_TRUE(MakeFolders(root + "/a.1/deep").ok());
  ASSERT_TRUE(MakeFolders(root + "/b.2").ok());
  ASSERT_TRUE(WriteFileAtomically(root + "/a.1/deep/file", "x").ok());
  // A task that is started while the folders are listed is in use by the time it is asked for.
  const auto in_use = [] { return std::set<std::string>{"b.2"}; };
  ASSERT_TRUE(CleanTaskFolders(root, in_use, {.keep = 0, .max_bytes = 0}).ok());
  EXPECT_FALSE(std::filesystem::exists(root + "/a.1"));
  EXPECT_TRUE(std::filesystem::exists(root + "/b.2"));
  std::filesystem::remove_all(root);
}

}  // namespace
}  // namespace retort::worker
