// Attention of a training step on the CPU, and how batches are cut for cuDNN.
#include "model/training/training_attention.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "model/training/attention_pieces.h"
#include "tests/model/attention_cases.h"

namespace retort {
namespace {

using internal::AttentionEngine;
using internal::AttentionGraphShape;
using internal::AttentionPiece;
using internal::AttentionProblem;

class TrainingAttentionTest : public ::testing::Test {
 protected:
  // Many small products: threads would wait for one another.
  void SetUp() override { at::set_num_threads(1); }
};

TEST_F(TrainingAttentionTest, AtenAsAutograd) {
  uint64_t seed = 0;
  for (const testing::AttentionCase& of : testing::SmallAttentionCases()) {
    SCOPED_TRACE(of.Text());
    for (const auto& [dtype, tolerance] : {std::pair{at::kFloat, 1e-5}, std::pair{at::kBFloat16, 1e-2}}) {
      const testing::AttentionInputs inputs(of, dtype, ++seed);
      const testing::AttentionResult result = testing::RunAttention(
          inputs, {.scale = testing::AttentionScale(of), .window = of.window}, AttentionEngine::kBest);
      testing::ExpectClose(of, result, testing::ReferenceAttention(inputs), tolerance);
    }
  }
}

TEST_F(TrainingAttentionTest, SamplesDoNotSeeOneAnother) {
  const testing::AttentionCase both{{20, 30}, 4, 2, 16};
  const testing::AttentionInputs inputs(both, at::kFloat, 1);
  testing::AttentionInputs second = inputs;
  second.attention_case.lengths = {30};
  second.qkv = inputs.qkv.narrow(0, 20, 30);
  second.d_out = inputs.d_out.narrow(0, 20, 30);
  const auto run = [&](const testing::AttentionInputs& of) {
    return testing::RunAttention(of, {.scale = 0.3}, AttentionEngine::kBest);
  };
  const testing::AttentionResult packed = run(inputs);
  const testing::AttentionResult alone = run(second);
  EXPECT_TRUE(at::equal(packed.out.narrow(0, 20, 30).narrow(1, 0, 64), alone.out.narrow(1, 0, 64)));
  EXPECT_TRUE(at::equal(packed.d_qkv.narrow(0, 20, 30).narrow(1, 0, 128), alone.d_qkv.narrow(1, 0, 128)));
}

TEST_F(TrainingAttentionTest, AnEngineAskedForInVainIsAnError) {
  const testing::AttentionCase of{{4}, 2, 2, 8};
  const testing::AttentionInputs inputs(of, at::kFloat, 1);
  for (const AttentionEngine engine : {AttentionEngine::kCudnn, AttentionEngine::kFlash}) {
    EXPECT_THROW(testing::RunAttention(inputs, {.engine = engine}, engine), c10::Error);
  }
}

TEST(AttentionPiecesTest, ShapesAreFew) {
  const std::vector<int64_t> offsets = {0, 1, 700, 3000, 3001, 3100};
  const AttentionGraphShape shape = internal::ShapeOf(offsets.data(), 0, 5, /*dense=*/false);
  EXPECT_EQ(shape.samples, 8);
  EXPECT_EQ(shape.length, 3072);
  EXPECT_EQ(shape.tokens, 4096);
  EXPECT_EQ(internal::ShapeOf(offsets.data(), 3, 1, false).length, 512);
  EXPECT_FALSE(internal::IsDense(offsets.data(), 5));
  const std::vector<int64_t> even = {0, 2048, 4096, 6144};
  EXPECT_TRUE(internal::IsDense(even.data(), 3));
  EXPECT_EQ(internal::ShapeOf(even.data(), 0, 3, true).samples, 3);
  const std::vector<int64_t> odd = {0, 100, 200};
  EXPECT_FALSE(internal::IsDense(odd.data(), 2));
  EXPECT_FALSE(internal::IsDense(odd.data(), 0));
}

AttentionProblem Llama(const std::vector<int64_t>& offsets, bool stores_scores) {
  return {.offsets = offsets.data(),
          .samples = static_cast<int64_t>(offsets.size()) - 1,
          .heads = 32,
          .kv_heads = 8,
          .dim = 128,
          .stores_scores = stores_scores,
          .q_stride = 6144,
          .kv_stride = 6144};
}

constexpr int64_t kGiB = int64_t{1} << 30;

TEST(AttentionPiecesTest, DeterministicScratchCutsSamplesThenHeads) {
  const std::vector<int64_t> four = {0, 4096, 8192, 12288, 16384};
  EXPECT_EQ(internal::CutBackward(Llama(four, false), kGiB, 4 * kGiB), (std::vector<AttentionPiece>{{0, 4, 0, 8}}));
  const std::vector<AttentionPiece> pieces = internal::CutBackward(Llama(four, true), 3 * kGiB / 2, 4 * kGiB);
  ASSERT_EQ(pieces.size(), 4);
  EXPECT_EQ(pieces[2], (AttentionPiece{2, 1, 0, 8}));
  // 4 query heads of 8192 x 8192 at 2 bytes are half a GiB, with what else there is a little more.
  const std::vector<int64_t> mixed = {0, 1, 8193, 8200};
  const std::vector<AttentionPiece> heads = internal::CutBackward(Llama(mixed, true), 3 * kGiB / 2, 4 * kGiB);
  ASSERT_EQ(heads.size(), 6);
  EXPECT_EQ(heads.front(), (AttentionPiece{0, 1, 0, 8}));
  EXPECT_EQ(heads[1], (AttentionPiece{1, 1, 0, 2}));
  EXPECT_EQ(heads[4], (AttentionPiece{1, 1, 6, 2}));
  EXPECT_EQ(heads.back(), (AttentionPiece{2, 1, 0, 8}));
  const std::vector<int64_t> one = {0, 32768};
  EXPECT_TRUE(internal::CutBackward(Llama(one, true), kGiB, 4 * kGiB).empty());
  EXPECT_EQ(internal::CutBackward(Llama(one, false), 3 * kGiB / 2, 4 * kGiB).size(), 1);
}

}  // namespace
}  // namespace retort
