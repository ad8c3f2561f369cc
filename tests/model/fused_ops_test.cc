// FusedOps written with ATen, on the CPU: what the kernels are measured by, measured itself.
#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include "tests/model/fused_ops_checks.h"

namespace retort {
namespace {

const testing::FusedSubject kSubject = {FusedOps::Reference(), c10::Device(c10::kCPU)};

TEST(FusedOpsTest, TheCpuHasTheReference) { EXPECT_EQ(&FusedOps::For(kSubject.device), &FusedOps::Reference()); }
TEST(FusedOpsTest, RmsNorm) { testing::CheckRmsNorm(kSubject); }
TEST(FusedOpsTest, RmsNormBackward) { testing::CheckRmsNormBackward(kSubject); }
TEST(FusedOpsTest, Rotate) { testing::CheckRotate(kSubject); }
TEST(FusedOpsTest, SwiGlu) { testing::CheckSwiGlu(kSubject); }
TEST(FusedOpsTest, SwiGluBackward) { testing::CheckSwiGluBackward(kSubject); }
TEST(FusedOpsTest, CrossEntropy) { testing::CheckCrossEntropy(kSubject); }
TEST(FusedOpsTest, CrossEntropyOfNoNumbers) { testing::CheckCrossEntropyOfNoNumbers(kSubject); }
TEST(FusedOpsTest, SquareSum) { testing::CheckSquareSum(kSubject); }
TEST(FusedOpsTest, AdamW) { testing::CheckAdamW(kSubject); }
TEST(FusedOpsTest, FlatBlocks) { testing::CheckFlatBlocks(kSubject); }
TEST(FusedOpsTest, WrongArguments) { testing::CheckWrongArguments(kSubject); }

}  // namespace
}  // namespace retort

int main(int argc, char** argv) {
  retort::testing::SeedFreshly();
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
