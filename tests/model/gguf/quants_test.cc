#include "model/gguf/quants.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "model/gguf/file.h"

namespace retort::gguf {
namespace {

constexpr TensorType kTypes[] = {TensorType::kF16,  TensorType::kBF16, TensorType::kQ4_0, TensorType::kQ4_1,
                                 TensorType::kQ5_0, TensorType::kQ5_1, TensorType::kQ8_0, TensorType::kQ2_K,
                                 TensorType::kQ3_K, TensorType::kQ4_K, TensorType::kQ5_K, TensorType::kQ6_K};
constexpr int64_t kValues = 2048;

std::string GoldenPath() {
  const char* root = std::getenv("RETORT_SOURCE_DIR");
  return std::string(root == nullptr ? "." : root) + "/tests/model/gguf/data/quants.gguf";
}

class QuantsTest : public testing::Test {
 protected:
  QuantsTest() : file_(File::Open(GoldenPath()).value()) {}

  absl::string_view Bytes(const std::string& name) const {
    const TensorInfo* tensor = file_->FindTensor(name);
    EXPECT_NE(tensor, nullptr) << name;
    return tensor == nullptr ? absl::string_view() : file_->Data(*tensor);
  }

  const std::shared_ptr<const File> file_;
};

TEST_F(QuantsTest, DequantisesToTheReferencesBits) {
  for (const TensorType type : kTypes) {
    const std::string name = InfoOf(type).name;
    ASSERT_TRUE(CanDequantise(type));
    std::vector<float> values(kValues);
    Dequantise(type, Bytes(name).data(), kValues, values.data());
    const absl::string_view expected = Bytes(name + ".values");
    ASSERT_EQ(expected.size(), kValues * sizeof(float));
    EXPECT_EQ(std::memcmp(values.data(), expected.data(), expected.size()), 0) << name;
  }
}

TEST_F(QuantsTest, QuantisesToTheReferencesBits) {
  std::vector<float> input(kValues);
  std::memcpy(input.data(), Bytes("input").data(), kValues * sizeof(float));
  for (const TensorType type : kTypes) {
    const std::string name = InfoOf(type).name;
    if (!CanQuantise(type)) continue;
    const absl::string_view expected = Bytes(name + ".quantised");
    std::string bytes(expected.size(), '\xAA');
    Quantise(type, input.data(), kValues, bytes.data());
    EXPECT_EQ(bytes, std::string(expected)) << name;
  }
  EXPECT_FALSE(CanQuantise(TensorType::kQ2_K));
  EXPECT_FALSE(CanDequantise(TensorType::kIQ4_XS));
}

TEST_F(QuantsTest, SourcesNeedNotBeAligned) {
  const absl::string_view blocks = Bytes("Q6_K");
  const std::string shifted = "x" + std::string(blocks);
  std::vector<float> values(kValues);
  Dequantise(TensorType::kQ6_K, shifted.data() + 1, kValues, values.data());
  EXPECT_EQ(std::memcmp(values.data(), Bytes("Q6_K.values").data(), kValues * sizeof(float)), 0);
}

TEST(HalfTest, EveryHalfSurvivesTheWayThroughFloat) {
  for (uint32_t half = 0; half < 65536; ++half) {
    const float value = HalfToFloat(static_cast<uint16_t>(half));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(value))));
    } else {
      ASSERT_EQ(FloatToHalf(value), half);
    }
  }
}

TEST(HalfTest, RoundsToNearestEven) {
  EXPECT_EQ(FloatToHalf(1.0F + 0x1p-11F), FloatToHalf(1.0F));          // a tie goes to the even
  EXPECT_EQ(FloatToHalf(1.0F + 3 * 0x1p-11F), FloatToHalf(1.0F) + 2);  // here upwards
  EXPECT_EQ(FloatToHalf(std::nextafterf(1.0F + 0x1p-11F, 2.0F)), FloatToHalf(1.0F) + 1);
  EXPECT_EQ(FloatToHalf(65519.0F), 0x7BFF);
  EXPECT_EQ(FloatToHalf(65520.0F), 0x7C00);
  EXPECT_EQ(FloatToHalf(0x1p-25F), 0);  // a tie with zero
  EXPECT_EQ(FloatToHalf(-0x1.8p-25F), 0x8001);
  EXPECT_EQ(FloatToBfloat16(1.0F + 0x1p-8F), 0x3F80);
  EXPECT_EQ(FloatToBfloat16(1.0F + 3 * 0x1p-8F), 0x3F82);
}

TEST(AllFiniteTest, KnowsEachTypesRange) {
  const float infinite[] = {1.0F, std::numeric_limits<float>::infinity()};
  const float nan[] = {std::numeric_limits<float>::quiet_NaN(), 1.0F};
  const float large[] = {1.0F, -70000.0F};
  EXPECT_FALSE(AllFinite(TensorType::kF32, infinite, 2));
  EXPECT_FALSE(AllFinite(TensorType::kQ8_0, nan, 2));
  EXPECT_TRUE(AllFinite(TensorType::kBF16, large, 2));
  EXPECT_FALSE(AllFinite(TensorType::kF16, large, 2));
  EXPECT_TRUE(AllFinite(TensorType::kQ8_0, large, 2));
  EXPECT_FALSE(AllFinite(TensorType::kQ4_1, large, 2));
}

}  // namespace
}  // namespace retort::gguf
