#include "student/epoch_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace retort {
namespace {

using ::testing::ElementsAre;

EpochPlan Make(const EpochPlanOptions& options) {
  auto plan = EpochPlan::Make(options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

TEST(PermutationTest, IsTheSameOnEveryMachine) {
  EXPECT_THAT(Permutation(0, 1, 0), ElementsAre());
  EXPECT_THAT(Permutation(1, 1, 0), ElementsAre(0));
  EXPECT_THAT(Permutation(8, 42, 0), ElementsAre(7, 0, 6, 2, 4, 1, 5, 3));
  EXPECT_THAT(Permutation(8, 42, 1), ElementsAre(6, 1, 0, 4, 7, 5, 3, 2));
}

TEST(PermutationTest, PutsEveryNumberAtEveryPlaceEquallyOften) {
  std::vector<std::vector<int>> seen(5, std::vector<int>(5));
  for (int seed = 0; seed < 5000; ++seed) {
    const auto order = Permutation(5, seed, 0);
    for (int i = 0; i < 5; ++i) ++seen[i][order[i]];
  }
  for (const auto& row : seen) {
    for (const int count : row) EXPECT_NEAR(count, 1000, 150);
  }
}

// Whatever the sizes: each epoch holds each sample once, in micro-batches and steps of at most the wanted size, and the
// cursor counts what came before.
TEST(EpochPlanTest, EverySampleExactlyOnceAnEpoch) {
  for (int64_t samples = 1; samples <= 30; ++samples) {
    for (int64_t micro = 1; micro <= 4; ++micro) {
      for (int64_t accumulate = 1; accumulate <= 5; ++accumulate) {
        const EpochPlan plan = Make({.samples = samples,
                                     .seed = 7,
                                     .epochs = 2,
                                     .micro_batch_samples = micro,
                                     .micro_batches_per_step = accumulate});
        ASSERT_EQ(plan.total_steps(), 2 * plan.steps_per_epoch());
        int64_t step = 0;
        std::vector<std::vector<int64_t>> orders;
        for (int epoch = 0; epoch < 2; ++epoch) {
          std::vector<int64_t> seen;
          for (int64_t i = 0; i < plan.steps_per_epoch(); ++i, ++step) {
            ASSERT_EQ(plan.CursorAt(step), (Cursor{epoch, static_cast<int64_t>(seen.size())}));
            const auto batches = plan.Step(step);
            ASSERT_GE(batches.size(), 1u);
            ASSERT_LE(batches.size(), static_cast<size_t>(accumulate));
            for (const auto& batch : batches) {
              ASSERT_GE(batch.size(), 1u);
              ASSERT_LE(batch.size(), static_cast<size_t>(micro));
              seen.insert(seen.end(), batch.begin(), batch.end());
            }
          }
          orders.push_back(seen);
          std::sort(seen.begin(), seen.end());
          std::vector<int64_t> all(samples);
          std::iota(all.begin(), all.end(), 0);
          ASSERT_EQ(seen, all);
        }
        ASSERT_EQ(plan.CursorAt(step), (Cursor{2, 0}));
        if (samples >= 10) {
          ASSERT_NE(orders[0], orders[1]);
        }
      }
    }
  }
}

TEST(EpochPlanTest, AStepDoesNotDependOnThoseAskedForBefore) {
  const EpochPlanOptions options{
      .samples = 20, .seed = 3, .epochs = 3, .micro_batch_samples = 3, .micro_batches_per_step = 2};
  const EpochPlan forward = Make(options);
  const EpochPlan backward = Make(options);
  std::vector<std::vector<std::vector<int64_t>>> steps;
  for (int64_t step = 0; step < forward.total_steps(); ++step) steps.push_back(forward.Step(step));
  for (int64_t step = backward.total_steps(); step-- > 0;) EXPECT_EQ(backward.Step(step), steps[step]);
}

TEST(EpochPlanTest, WithoutShufflingTheDataKeepsItsOrder) {
  const EpochPlan plan =
      Make({.samples = 5, .shuffle = false, .epochs = 2, .micro_batch_samples = 2, .micro_batches_per_step = 2});
  EXPECT_THAT(plan.Step(0), ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3)));
  EXPECT_THAT(plan.Step(1), ElementsAre(ElementsAre(4)));
  EXPECT_THAT(plan.Step(2), ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3)));
}

TEST(EpochPlanTest, CountsStepsAsTransformersDoes) {
  EXPECT_EQ(Make({.samples = 10, .epochs = 1.5, .micro_batch_samples = 2, .micro_batches_per_step = 2}).total_steps(),
            5);
  EXPECT_EQ(Make({.samples = 10, .epochs = 0.1}).total_steps(), 1);
  EXPECT_EQ(Make({.samples = 10, .epochs = 3, .max_steps = 7, .micro_batch_samples = 10}).total_steps(), 7);
  EXPECT_DOUBLE_EQ(Make({.samples = 10, .epochs = 3, .micro_batch_samples = 4}).EpochsAt(4), 1.4);
}

TEST(EpochPlanTest, RefusesWhatCannotBeTrained) {
  EXPECT_FALSE(EpochPlan::Make({.samples = 0}).ok());
  EXPECT_FALSE(EpochPlan::Make({.samples = 1, .epochs = 0}).ok());
  EXPECT_FALSE(EpochPlan::Make({.samples = 1, .epochs = 1e300}).ok());
  EXPECT_FALSE(EpochPlan::Make({.samples = 1, .micro_batch_samples = 0}).ok());
}

}  // namespace
}  // namespace retort
