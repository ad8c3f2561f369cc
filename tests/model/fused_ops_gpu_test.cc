// The kernels of libretort_train.so against f64 on the CPU, also where rows * columns is beyond 2^31. Needs a GPU and
// the library (build preset cuda); the last tests take up to 14 GB of its memory.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "model/device.h"
#include "tests/model/fused_ops_checks.h"

namespace retort {
namespace {

using at::Tensor;

class FusedOpsGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto device = ChooseDevice("cuda");
    if (!device.ok()) GTEST_SKIP() << device.status();
    const FusedOps& ops = FusedOps::For(*device);
    ASSERT_NE(&ops, &FusedOps::Reference()) << "libretort_train.so is not beside the program";
    subject_ = std::make_unique<testing::FusedSubject>(testing::FusedSubject{ops, *device});
    options_ = at::TensorOptions(*device).dtype(at::kBFloat16);
  }

  const FusedOps& ops() const { return subject_->ops; }

  Tensor Normal(at::IntArrayRef sizes) const { return at::empty(sizes, options_).normal_(); }
  Tensor Poisoned(at::IntArrayRef sizes) const { return at::full(sizes, std::nan(""), options_); }

  // The first and last rows, and those about element 2^31 and 2^32.
  Tensor Sample(const Tensor& matrix) const {
    const int64_t rows = matrix.size(0);
    std::vector<int64_t> picked = {0, 1, rows / 2, rows - 2, rows - 1};
    for (const int64_t element : {int64_t{1} << 31, int64_t{1} << 32}) {
      const int64_t row = element / matrix.size(1);
      for (int64_t near = row - 1; near <= row + 1; ++near) {
        if (near < rows) picked.push_back(near);
      }
    }
    return at::tensor(picked, at::TensorOptions(at::kLong)).to(subject_->device);
  }

  std::unique_ptr<testing::FusedSubject> subject_;
  at::TensorOptions options_;
};

TEST_F(FusedOpsGpuTest, RmsNorm) { testing::CheckRmsNorm(*subject_); }
TEST_F(FusedOpsGpuTest, RmsNormBackward) { testing::CheckRmsNormBackward(*subject_); }
TEST_F(FusedOpsGpuTest, Rotate) { testing::CheckRotate(*subject_); }
TEST_F(FusedOpsGpuTest, SwiGlu) { testing::CheckSwiGlu(*subject_); }
TEST_F(FusedOpsGpuTest, SwiGluBackward) { testing::CheckSwiGluBackward(*subject_); }
TEST_F(FusedOpsGpuTest, CrossEntropy) { testing::CheckCrossEntropy(*subject_); }
TEST_F(FusedOpsGpuTest, CrossEntropyOfNoNumbers) { testing::CheckCrossEntropyOfNoNumbers(*subject_); }
TEST_F(FusedOpsGpuTest, SquareSum) { testing::CheckSquareSum(*subject_); }
TEST_F(FusedOpsGpuTest, AdamW) { testing::CheckAdamW(*subject_); }
TEST_F(FusedOpsGpuTest, FlatBlocks) { testing::CheckFlatBlocks(*subject_); }
TEST_F(FusedOpsGpuTest, WrongArguments) { testing::CheckWrongArguments(*subject_); }

TEST_F(FusedOpsGpuTest, RmsNormOfMillionsOfRows) {
  constexpr int64_t kWidth = 128;
  constexpr int64_t kRows = (int64_t{1} << 31) / kWidth + 1003;
  const Tensor x = Normal({kRows, kWidth});
  const Tensor weight = Normal({kWidth});
  const Tensor picked = Sample(x);
  const Tensor x_rows = x.index_select(0, picked);
  const auto plain = [&](const Tensor& rows) { return testing::PlainRmsNorm(rows, weight, 1e-5); };
  {
    Tensor y = Poisoned(x.sizes());
    ops().RmsNorm(x, weight, 1e-5, y);
    EXPECT_FALSE(y.isnan().any().item<bool>());
    testing::ExpectNear(y.index_select(0, picked), plain(x_rows.cpu().to(at::kDouble)), "y");
  }
  Tensor grad = Normal(x.sizes());
  const Tensor expected = testing::PlainGradient(plain, x_rows, grad.index_select(0, picked));
  ops().RmsNormBackward(grad, x, weight, 1e-5, Tensor(), grad);
  testing::ExpectNear(grad.index_select(0, picked), expected, "dx");
}

TEST_F(FusedOpsGpuTest, RotateMillionsOfHeads) {
  constexpr int64_t kHeads = 32;
  constexpr int64_t kHalf = 64;
  constexpr int64_t kTokens = (int64_t{1} << 31) / (2 * kHeads * kHalf) + 11;
  Tensor x = Normal({kTokens, 2 * kHeads * kHalf});
  const Tensor angles = at::rand({kTokens, kHalf}, options_.dtype(at::kFloat)) * 6.3;
  const Tensor cos = angles.cos();
  const Tensor sin = angles.sin();
  const Tensor picked = Sample(x);
  const Tensor expected = testing::PlainRotate(x.index_select(0, picked), kHeads, cos.index_select(0, picked),
                                               sin.index_select(0, picked), false);
  ops().Rotate(x, kHeads, cos, sin, false);
  testing::ExpectNear(x.index_select(0, picked), expected, "x");
}

TEST_F(FusedOpsGpuTest, SwiGluOfBillions) {
  constexpr int64_t kWidth = 14336;
  constexpr int64_t kRows = (int64_t{1} << 31) / (2 * kWidth) + 301;
  Tensor gate_up = Normal({kRows, 2 * kWidth});
  const Tensor picked = Sample(gate_up);
  const Tensor rows = gate_up.index_select(0, picked);
  Tensor y = Poisoned({kRows, kWidth});
  ops().SwiGlu(gate_up, y);
  EXPECT_FALSE(y.isnan().any().item<bool>());
  testing::ExpectNear(y.index_select(0, picked), testing::PlainSwiGlu(rows.cpu().to(at::kDouble)), "y");
  Tensor grad = Normal(y.sizes());
  const Tensor expected = testing::PlainGradient(testing::PlainSwiGlu, rows, grad.index_select(0, picked));
  const Tensor value = y.index_select(0, picked);
  ops().SwiGluBackward(grad, gate_up, grad);
  testing::ExpectNear(gate_up.index_select(0, picked), expected, "gradient");
  testing::ExpectSameBits(grad.index_select(0, picked), value, "value");
}

TEST_F(FusedOpsGpuTest, CrossEntropyOfBillions) {
  constexpr int64_t kVocabulary = 128256;
  constexpr int64_t kRows = (int64_t{1} << 31) / kVocabulary + 130;
  Tensor logits = Normal({kRows, kVocabulary});
  const Tensor targets = at::randint(kVocabulary, {kRows}, options_.dtype(at::kLong));
  const Tensor picked = Sample(logits);
  const Tensor rows = logits.index_select(0, picked).cpu().to(at::kDouble);
  const Tensor own_targets = targets.index_select(0, picked).cpu();
  Tensor losses = at::full({kRows}, std::nan(""), options_.dtype(at::kFloat));
  ops().CrossEntropy(logits, targets, 1.0F, true, losses);
  EXPECT_FALSE(losses.isnan().any().item<bool>());
  const auto plain = [&](const Tensor& input) { return testing::PlainCrossEntropy(input, own_targets); };
  testing::ExpectNear(losses.index_select(0, picked), plain(rows), "losses");
  const Tensor ones = at::ones({picked.numel()}, at::TensorOptions(at::kDouble));
  testing::ExpectNear(logits.index_select(0, picked), testing::PlainGradient(plain, rows, ones), "gradient");
}

TEST_F(FusedOpsGpuTest, SquareSumOfBillions) {
  constexpr int64_t kCount = (int64_t{1} << 31) + 1003;
  const Tensor x = at::empty({kCount}, options_.dtype(at::kFloat)).normal_();
  double expected = 0.0;
  for (const Tensor& part : x.split(int64_t{1} << 27)) expected += part.to(at::kDouble).square().sum().item<double>();
  Tensor out = at::full({1}, std::nan(""), options_.dtype(at::kDouble));
  ops().SquareSum(x, out);
  EXPECT_NEAR(out.item<double>(), expected, 1e-11 * expected);
}

// ATen on the GPU: what there is where the library is not.
TEST_F(FusedOpsGpuTest, TheReferenceToo) {
  const testing::FusedSubject reference = {FusedOps::Reference(), subject_->device};
  testing::CheckRmsNormBackward(reference);
  testing::CheckSwiGluBackward(reference);
  testing::CheckCrossEntropy(reference);
  testing::CheckFlatBlocks(reference);
}

}  // namespace
}  // namespace retort

int main(int argc, char** argv) {
  retort::OpenCudaIfPresent();
  retort::testing::SeedFreshly();
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
