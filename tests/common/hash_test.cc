#include "common/hash.h"

#include <gtest/gtest.h>

#include "common/file.h"

namespace retort {
namespace {

// FIPS 180-2, appendix B.1 and the empty string.
TEST(Sha256, MatchesPublishedVectors) {
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

TEST(Sha256, FieldsCannotSlideIntoEachOther) {
  Sha256 left, right;
  left.UpdateField("ab");
  left.UpdateField("c");
  right.UpdateField("a");
  right.UpdateField("bc");
  EXPECT_NE(left.Finish(), right.Finish());
}

TEST(Sha256, HashesAFileAsItsContents) {
  const std::string path = testing::TempDir() + "/sha256_file";
  const std::string contents(3'000'000, 'x');
  ASSERT_TRUE(WriteFileAtomically(path, contents).ok());
  EXPECT_EQ(Sha256HexOfFile(path).value(), Sha256Hex(contents));
  EXPECT_EQ(Sha256HexOfFile(path + ".missing").status().code(), absl::StatusCode::kNotFound);
}

TEST(Sha256, TellsHexFromOtherText) {
  EXPECT_TRUE(IsSha256Hex(Sha256Hex("x")));
  EXPECT_FALSE(IsSha256Hex("../../etc/passwd"));
  EXPECT_FALSE(IsSha256Hex(std::string(64, 'G')));
}

}  // namespace
}  // namespace retort
