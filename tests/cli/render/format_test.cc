#include "cli/render/format.h"

#include <gtest/gtest.h>

#include <cmath>

namespace retort::cli {
namespace {

TEST(FormatTest, Numbers) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(12800), "12,800");
  EXPECT_EQ(FormatCount(-1234567), "-1,234,567");
  EXPECT_EQ(FormatSeconds(0.44), "0.4s");
  EXPECT_EQ(FormatSeconds(9.96), "10s");
  EXPECT_EQ(FormatSeconds(200), "3m 20s");
  EXPECT_EQ(FormatSeconds(7500), "2h 05m");
  EXPECT_EQ(FormatSeconds(356400), "4d 03h");
  EXPECT_EQ(FormatSeconds(NAN), "-");
  EXPECT_EQ(FormatBytes(512), "512 B");
  EXPECT_EQ(FormatBytes(1400), "1.4 KB");
  EXPECT_EQ(FormatBytes(999'999), "1.0 MB");
  EXPECT_EQ(FormatBytes(16'000'000'000), "16 GB");
  EXPECT_EQ(FormatRate(0.01234), "0.0123");
  EXPECT_EQ(FormatRate(4.56), "4.56");
  EXPECT_EQ(FormatRate(4567), "4567");
  EXPECT_EQ(FormatPercent(0.675), "67.5%");
  EXPECT_EQ(FormatPercent(NAN), "-");
}

TEST(FormatTest, SparklineShowsTheWayDown) {
  EXPECT_EQ(Sparkline({8, 7, 6, 5, 4, 3, 2, 1}, 10, true), "█▇▆▅▄▃▂▁");
  EXPECT_EQ(Sparkline({4, 4, 0, 0}, 2, true), "█▁");
  EXPECT_EQ(Sparkline({1, 1, 1}, 10, true), "▅▅▅");
  EXPECT_EQ(Sparkline({0, 9}, 10, false), "09");
  EXPECT_EQ(Sparkline({1}, 10, true), "");
}

TEST(FormatTest, WidthCountsWhatIsSeen) {
  EXPECT_EQ(VisibleWidth("\x1b[1mab\x1b[0m"), 2);
  EXPECT_EQ(VisibleWidth("━━"), 2);
  EXPECT_EQ(Truncate("abcdef", 6, true), "abcdef");
  EXPECT_EQ(Truncate("abcdef", 4, true), "abc…");
  EXPECT_EQ(Truncate("abcdef", 4, false), "a...");
  EXPECT_EQ(Truncate("\x1b[1mabcdef\x1b[0m", 4, true), "\x1b[1mabc…\x1b[0m");
  EXPECT_EQ(Pad("ab", 4), "ab  ");
  EXPECT_EQ(Pad("ab", -4), "  ab");
}

TEST(FormatTest, TableAlignsColumns) {
  Table table({"name", ">count", "text"});
  table.AddRow({"a", "1", "x"});
  table.AddRow({"long", "1,000", "yy"});
  EXPECT_EQ(table.ToString(false),
            "name  count  text\n"
            "a         1  x\n"
            "long  1,000  yy\n");
}

}  // namespace
}  // namespace retort::cli
