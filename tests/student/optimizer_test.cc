#include "student/optimizer.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include <cmath>

#include "student/schedule.h"
#include "tests/student/golden.h"

namespace retort {
namespace {

at::Tensor FromDoubles(const std::vector<double>& values) {
  return at::tensor(at::ArrayRef<double>(values), at::kDouble).to(at::kFloat);
}

TEST(ScheduleTest, GivesTransformersRates) {
  for (const golden::Schedule& schedule : golden::kSchedules) {
    ScheduleOptions options;
    ASSERT_TRUE(v1::LrSchedulerType_Parse(
        "LR_SCHEDULER_TYPE_" +
            [&] {
              std::string upper = schedule.name;
              for (char& c : upper) c = static_cast<char>(std::toupper(c));
              return upper;
            }(),
        &options.type));
    options.learning_rate = 2e-4;
    options.total_steps = schedule.total_steps;
    options.warmup_steps = schedule.warmup_steps;
    for (int step = 0; step < schedule.total_steps; ++step) {
      EXPECT_NEAR(LearningRate(options, step), schedule.rates[step], 1e-18)
          << schedule.name << " warmup " << schedule.warmup_steps << " step " << step;
    }
  }
}

TEST(ScheduleTest, WarmupStepsWinOverTheRatioWhichIsRoundedUp) {
  v1::TrainingSpec training;
  EXPECT_EQ(WarmupSteps(training, 100), 0);
  training.set_warmup_ratio(0.03);
  EXPECT_EQ(WarmupSteps(training, 10), 1);
  EXPECT_EQ(WarmupSteps(training, 101), 4);
  training.set_warmup_steps(7);
  EXPECT_EQ(WarmupSteps(training, 101), 7);
}

TEST(AdamWTest, GivesTorchsParametersAfterClipping) {
  at::Tensor parameters = FromDoubles(golden::kStart);
  AdamWMoments moments = ZeroMoments(parameters);
  const AdamWOptions options{.beta1 = 0.9, .beta2 = 0.98, .epsilon = 1e-6, .weight_decay = 0.1};
  for (size_t step = 0; step < golden::kAdamWSteps.size(); ++step) {
    const golden::AdamWStep& expected = golden::kAdamWSteps[step];
    at::Tensor gradient = FromDoubles(expected.gradient);
    const double norm = GradientNorm(gradient);
    EXPECT_NEAR(norm, expected.norm, 1e-6 * expected.norm);
    ClipGradient(norm, 1.0, gradient);
    AdamWStep(options, static_cast<int64_t>(step) + 1, 1e-2, gradient, parameters, moments);
    const at::Tensor wanted = FromDoubles(expected.parameters);
    EXPECT_LT(at::sub(parameters, wanted).abs().max().item<float>(), 5e-7f) << "step " << step;
  }
}

TEST(AdamWTest, WeightDecaySparesWhatItIsTold) {
  at::Tensor all = at::ones({10});
  at::Tensor some = at::ones({10});
  const at::Tensor gradient = at::zeros({10});
  AdamWMoments moments = ZeroMoments(all);
  AdamWStep({.weight_decay = 0.5}, 1, 0.1, gradient, all, moments);
  AdamWStep({.weight_decay = 0.5}, 1, 0.1, gradient, some, moments, {{0, 2}, {5, 6}, {9, 10}});
  for (int64_t i = 0; i < 10; ++i) {
    const bool spared = i < 2 || i == 5 || i == 9;
    EXPECT_EQ(some[i].item<float>(), spared ? 1.0F : all[i].item<float>()) << i;
    EXPECT_LT(all[i].item<float>(), 1.0F);
  }
}

TEST(ClipTest, LeavesSmallGradientsAndUnlimitedOnesAlone) {
  at::Tensor gradient = at::full({4}, 2.0f);
  ClipGradient(GradientNorm(gradient), 0.0, gradient);
  EXPECT_EQ(gradient[0].item<float>(), 2.0f);
  ClipGradient(GradientNorm(gradient), 5.0, gradient);
  EXPECT_EQ(gradient[0].item<float>(), 2.0f);
  ClipGradient(GradientNorm(gradient), 1.0, gradient);
  EXPECT_NEAR(GradientNorm(gradient), 1.0, 1e-5);
}

TEST(GradientNormTest, CountsEveryElementOfAnyLength) {
  for (int64_t numel = 1; numel <= 40; ++numel) {
    EXPECT_DOUBLE_EQ(GradientNorm(at::ones({numel})), std::sqrt(static_cast<double>(numel)));
  }
}

}  // namespace
}  // namespace retort
