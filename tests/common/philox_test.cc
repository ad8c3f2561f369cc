#include "common/philox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace retort {
namespace {

using ::testing::ElementsAre;

// The known answers that the paper's authors publish with Random123 (tests/kat_vectors, "philox4x32 10").
TEST(Philox, KnownAnswers) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}), ElementsAre(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  EXPECT_THAT(Philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
              ElementsAre(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  EXPECT_THAT(Philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
              ElementsAre(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(Philox, PositionStreamAndKeyFillTheirWords) {
  EXPECT_EQ(PhiloxAt(0x0000000200000001, 0x0000000400000003, 0x0000000600000005), Philox4x32({3, 4, 5, 6}, {1, 2}));
}

TEST(Philox, UniformsStayBelowOne) {
  const PhiloxBlock highest = {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff};
  EXPECT_LT(UniformFromPhilox(highest, 0), 1.0);
  EXPECT_LT(UniformFromPhilox(highest, 1), 1.0);
  EXPECT_LT(UniformFromWord(0xffffffff), 1.0F);
  EXPECT_EQ(UniformFromPhilox({0, 0x80000000, 0, 0}, 0), 0.5);
  EXPECT_EQ(UniformFromPhilox({0, 0, 0, 0x40000000}, 1), 0.25);
  EXPECT_EQ(UniformFromWord(0x80000000), 0.5F);
}

TEST(Philox, UniformsSpreadEvenly) {
  std::array<int, 16> counts{};
  for (uint64_t position = 0; position < 16'000; ++position)
    ++counts[static_cast<size_t>(UniformFromPhilox(PhiloxAt(42, position)) * 16)];
  for (const int count : counts) EXPECT_NEAR(count, 1000, 160);  // 5 standard deviations
}

}  // namespace
}  // namespace retort
