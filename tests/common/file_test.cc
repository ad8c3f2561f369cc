#include "common/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace retort {
namespace {

class FileTest : public testing::Test {
 protected:
  FileTest() {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  const std::string folder_ = testing::TempDir() + "/retort_file_test";
};

TEST_F(FileTest, WritesWholeFilesWithTheirMode) {
  const std::string path = folder_ + "/token";
  ASSERT_TRUE(WriteFileAtomically(path, "secret", 0600).ok());
  EXPECT_EQ(ReadFile(path).value(), "secret");
  struct stat info;
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  ASSERT_TRUE(WriteFileAtomically(path, "other", 0600).ok());
  EXPECT_EQ(ReadFile(path).value(), "other");
}

TEST_F(FileTest, WhatACrashedProcessOfTheSameIdLeftIsNotInTheWay) {
  // In a container every life of a process has the same id: names made of it and a count would come again.
  const std::string path = folder_ + "/file";
  for (int i = 0; i < 200; ++i) std::ofstream(absl::StrCat(path, ".tmp.", getpid(), ".", i)) << "half";
  ASSERT_TRUE(WriteFileAtomically(path, "whole").ok());
  EXPECT_EQ(ReadFile(path).value(), "whole");
}

TEST_F(FileTest, LeavesNothingBehindWhenTheDiskIsFull) {
  const absl::Status status = WriteFileAtomically("/dev/full/x", "y");
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(WriteFileAtomically(folder_ + "/no/such/folder/x", "y").code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(std::filesystem::is_empty(folder_));
}

TEST_F(FileTest, RefusesAFileAboveTheLimit) {
  ASSERT_TRUE(WriteFileAtomically(folder_ + "/big", std::string(100, 'x')).ok());
  EXPECT_EQ(ReadFile(folder_ + "/big", 99).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(ReadFile(folder_ + "/big", 100).ok());
}

// As root, a rename would put a plain file in the place of /dev/null.
TEST_F(FileTest, WritesIntoWhatIsNoPlainFile) {
  const std::string pipe = folder_ + "/pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  const UniqueFd reader(open(pipe.c_str(), O_RDONLY | O_NONBLOCK));
  ASSERT_TRUE(WriteFileAtomically(pipe, "through").ok());
  char buffer[16] = {};
  EXPECT_EQ(read(reader.get(), buffer, sizeof(buffer)), 7);
  EXPECT_STREQ(buffer, "through");
  EXPECT_TRUE(std::filesystem::is_fifo(pipe));
  EXPECT_TRUE(WriteFileAtomically("/dev/null", "away").ok());
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST_F(FileTest, PublishesAFolderOnce) {
  ASSERT_TRUE(MakeFolders(folder_ + "/draft/sub").ok());
  ASSERT_TRUE(WriteFileAtomically(folder_ + "/draft/sub/x", "1").ok());
  ASSERT_TRUE(PublishFolder(folder_ + "/draft", folder_ + "/done").ok());
  EXPECT_EQ(ReadFile(folder_ + "/done/sub/x").value(), "1");
  ASSERT_TRUE(MakeFolders(folder_ + "/draft").ok());
  EXPECT_EQ(PublishFolder(folder_ + "/draft", folder_ + "/done").code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(FileTest, MakesRelativeAndAbsoluteFolders) {
  ASSERT_TRUE(MakeFolders(folder_ + "//a/b/").ok());
  EXPECT_TRUE(std::filesystem::is_directory(folder_ + "/a/b"));
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder_);
  const absl::Status made = MakeFolders("c/d");
  std::filesystem::current_path(before);  // this folder goes away with the test
  ASSERT_TRUE(made.ok()) << made;
  EXPECT_TRUE(std::filesystem::is_directory(folder_ + "/c/d"));
  ASSERT_TRUE(WriteFileAtomically(folder_ + "/file", "").ok());
  EXPECT_EQ(MakeFolders(folder_ + "/file").code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(FileTest, KeepsNamesFromOutsideInTheirFolder) {
  EXPECT_EQ(JoinBelow("/root", "a/b").value(), "/root/a/b");
  for (const std::string bad : {"", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/."}) {
    EXPECT_EQ(JoinBelow("/root", bad).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_FALSE(JoinBelow("/root", absl::string_view("a\0b", 3)).ok());
  EXPECT_FALSE(JoinBelow("/root", std::string(5000, 'x')).ok());
}

}  // namespace
}  // namespace retort
