#include "common/text.h"

#include <gtest/gtest.h>

namespace retort {
namespace {

TEST(ValidUtf8, KeepsWhatIsValid) {
  EXPECT_EQ(ValidUtf8("plain", 100), "plain");
  EXPECT_EQ(ValidUtf8("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", 100), "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
}

TEST(ValidUtf8, ReplacesWhatIsNot) {
  EXPECT_EQ(ValidUtf8("a\xff"
                      "b",
                      100),
            "a?b");
  EXPECT_EQ(ValidUtf8("\xc0\x80", 100), "??");            // overlong
  EXPECT_EQ(ValidUtf8("\xed\xa0\x80", 100), "???");       // surrogate
  EXPECT_EQ(ValidUtf8("\xf4\x90\x80\x80", 100), "????");  // beyond U+10FFFF
  EXPECT_EQ(ValidUtf8("\xe2\x82", 100), "??");            // cut
}

TEST(ValidUtf8, NeverCutsACharacter) {
  EXPECT_EQ(ValidUtf8("ab\xe2\x82\xac", 4), "ab");
  EXPECT_EQ(ValidUtf8("ab\xe2\x82\xac", 5), "ab\xe2\x82\xac");
}

}  // namespace
}  // namespace retort
