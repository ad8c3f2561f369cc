#include "model/comm/reduction_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <random>

namespace retort {
namespace {

using ::testing::ElementsAre;

// The definition, written down as it reads.
float ReferenceSum(const std::vector<float>& leaves, int64_t first, int level, bool* present) {
  *present = first < static_cast<int64_t>(leaves.size());
  if (!*present) return 0;
  if (level == 0) return leaves[first];
  bool has_right = false;
  const float left = ReferenceSum(leaves, first, level - 1, present);
  const float right = ReferenceSum(leaves, first + (int64_t{1} << (level - 1)), level - 1, &has_right);
  return has_right ? left + right : left;
}

auto FloatFold(int64_t leaves) {
  auto add = [](float& left, float right) { left += right; };
  return TreeFold<float, decltype(add)>(leaves, add);
}

TEST(BalancedRangeTest, TilesEverySizeWithLengthsThatDifferByOneAtMost) {
  for (int64_t total = 0; total <= 40; ++total) {
    for (int parts = 1; parts <= 41; ++parts) {
      int64_t next = 0;
      for (int index = 0; index < parts; ++index) {
        const IndexRange range = BalancedRange(total, parts, index);
        ASSERT_EQ(range.begin, next);
        ASSERT_GE(range.size(), total / parts);
        ASSERT_LE(range.size(), (total + parts - 1) / parts);
        next = range.end;
      }
      ASSERT_EQ(next, total);
    }
  }
}

TEST(MaximalSubtreesTest, AbsentLeavesBelongToTheLastRange) {
  EXPECT_THAT(MaximalSubtrees({0, 5}, 5), ElementsAre(Subtree{0, 3}));
  EXPECT_THAT(MaximalSubtrees({0, 2}, 5), ElementsAre(Subtree{0, 1}));
  EXPECT_THAT(MaximalSubtrees({1, 5}, 5), ElementsAre(Subtree{1, 0}, Subtree{2, 1}, Subtree{4, 2}));
  EXPECT_THAT(MaximalSubtrees({3, 3}, 5), ElementsAre());
  EXPECT_THAT(MaximalSubtrees({0, 1}, 1), ElementsAre(Subtree{0, 0}));
}

// Every number of micro-batches up to 33 on every number of ranks: what the ranks sum alone, put together, has the bits
// of the tree over all leaves.
TEST(TreeFoldTest, BitsDoNotDependOnTheNumberOfRanks) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 1);
  int sums_that_need_the_order = 0;
  for (int64_t leaves = 1; leaves <= 33; ++leaves) {
    std::vector<float> values(leaves);
    for (float& value : values) value = normal(random) * std::exp2f(static_cast<float>(random() % 24));
    bool present = false;
    const float expected = ReferenceSum(values, 0, RootLevel(leaves), &present);
    float in_order = 0;
    for (const float value : values) in_order += value;
    sums_that_need_the_order += in_order != expected;
    for (int ranks = 1; ranks <= leaves + 2; ++ranks) {
      auto total = FloatFold(leaves);
      for (int rank = 0; rank < ranks; ++rank) {
        const IndexRange range = BalancedRange(leaves, ranks, rank);
        auto own = FloatFold(leaves);
        for (int64_t i = range.begin; i < range.end; ++i) own.Push({i, 0}, values[i]);
        const auto nodes = own.Take();
        const auto planned = MaximalSubtrees(range, leaves);
        ASSERT_EQ(nodes.size(), planned.size());
        for (size_t i = 0; i < nodes.size(); ++i) {
          ASSERT_EQ(nodes[i].subtree, planned[i]);
          total.Push(nodes[i].subtree, nodes[i].value);
        }
      }
      const auto root = total.Take();
      ASSERT_EQ(root.size(), 1u);
      ASSERT_EQ(std::bit_cast<uint32_t>(root[0].value), std::bit_cast<uint32_t>(expected))
          << leaves << " leaves, " << ranks << " ranks";
    }
  }
  // Otherwise the values would not tell one order from another.
  EXPECT_GT(sums_that_need_the_order, 10);
}

TEST(TreeSumTest, IsTheTree) {
  EXPECT_EQ(TreeSum({}), 0.0);
  EXPECT_EQ(TreeSum({1.5}), 1.5);
  const double big = 9007199254740992.0;  // 2^53: big + 1 == big
  EXPECT_EQ(TreeSum({big, 1.0, 1.0}), big);
  EXPECT_EQ(TreeSum({1.0, 1.0, big}), big + 2.0);
}

}  // namespace
}  // namespace retort
