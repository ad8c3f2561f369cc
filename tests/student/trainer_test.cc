#include "student/trainer.h"

#include <ATen/Functions.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <set>

#include "student/state_sync.h"
#include "tests/student/fake_gang.h"

namespace retort {
namespace {

using ::retort::testing::FakeModel;
using ::retort::testing::FakeTrainer;
using ::retort::testing::FakeTraining;
using ::retort::testing::RunGang;
using ::retort::testing::SameState;
using ::testing::HasSubstr;

// Trains until `until` steps are done.
void TrainTo(Trainer& trainer, Gang& gang, int64_t until) {
  while (trainer.step() < until) {
    bool leave = false;
    auto progress = trainer.Step(gang, false, &leave);
    ASSERT_TRUE(progress.ok()) << progress.status();
    ASSERT_FALSE(leave);
    if (trainer.EvaluationDue()) {
      ASSERT_TRUE(trainer.Evaluate(gang).ok());
    }
  }
}

// All of a training on `ranks` ranks; every rank must end with the same state.
std::unique_ptr<Trainer> TrainAlone(int ranks, const v1::TrainingSpec& training) {
  std::vector<std::unique_ptr<Trainer>> trainers(ranks);
  RunGang(ranks, [&](int rank, std::unique_ptr<Gang> gang) {
    trainers[rank] = FakeTrainer(training);
    TrainTo(*trainers[rank], *gang, trainers[rank]->plan().total_steps());
  });
  for (auto& trainer : trainers) {
    EXPECT_TRUE(trainer->finished());
    EXPECT_TRUE(SameState(*trainer, *trainers[0]));
  }
  return std::move(trainers[0]);
}

v1::TrainingSpec WithEvaluation() {
  v1::TrainingSpec training = FakeTraining();
  training.set_eval_strategy(v1::EVAL_STRATEGY_STEPS);
  training.set_eval_steps(2);
  return training;
}

TEST(TrainerTest, LearnsAndHasTheSameBitsOnAnyNumberOfRanks) {
  const auto alone = TrainAlone(1, WithEvaluation());
  ASSERT_EQ(alone->step(), 15);  // 19 samples, 8 a step, 5 epochs
  EXPECT_LT(alone->history().back().eval_loss(), alone->history()[1].eval_loss());
  for (int ranks = 2; ranks <= 6; ++ranks) {
    EXPECT_TRUE(SameState(*TrainAlone(ranks, WithEvaluation()), *alone)) << ranks << " ranks";
  }
}

// The end of the training must depend on what the test of equality looks at.
TEST(TrainerTest, ASeedMakesADifference) {
  v1::TrainingSpec other = FakeTraining();
  other.set_seed(43);
  EXPECT_FALSE(SameState(*TrainAlone(1, other), *TrainAlone(1, FakeTraining())));
}

TEST(TrainerTest, GradientIsTheMeanOverTheTrainedTokensOfTheStep) {
  // One step over all samples, from zeros: the gradient of parameter i is minus the mean target.
  v1::TrainingSpec training = FakeTraining();
  training.set_per_device_train_batch_size(3);
  training.set_gradient_accumulation_steps(7);
  training.set_max_steps(1);
  training.set_max_grad_norm(0);
  const auto trainer = TrainAlone(2, training);
  const Dataset dataset = retort::testing::FakeDataset(19);
  MicroBatch all;
  all.sequence_offsets = {0};
  int64_t tokens = 0;
  for (int64_t s = 0; s < dataset.size(); ++s) {
    for (const int32_t id : dataset.input_ids(s)) all.input_ids.push_back(id);
    for (const int32_t label : dataset.labels(s)) all.labels.push_back(label);
    all.sequence_offsets.push_back(static_cast<int64_t>(all.input_ids.size()));
    tokens += dataset.trained_tokens(s);
  }
  FakeModel fresh(37);
  at::Tensor gradient = at::empty({37});
  const LossSum sum = *fresh.ForwardBackward(all, 1.0 / static_cast<double>(tokens), 0, gradient);
  ASSERT_EQ(sum.trained_tokens, tokens);
  ASSERT_EQ(trainer->history().size(), 1u);
  EXPECT_NEAR(trainer->history()[0].loss(), sum.loss / static_cast<double>(tokens), 1e-9 * sum.loss);
  EXPECT_NEAR(trainer->history()[0].grad_norm(), GradientNorm(gradient), 1e-5 * GradientNorm(gradient));
  EXPECT_EQ(trainer->history()[0].learning_rate(), 0.05);
}

TEST(TrainerTest, PointsComeEveryLoggingStepsAndAtTheEnd) {
  v1::TrainingSpec training = FakeTraining();
  training.set_logging_steps(4);
  std::vector<int64_t> steps;
  for (const auto& point : TrainAlone(1, training)->history()) steps.push_back(point.step());
  EXPECT_THAT(steps, ::testing::ElementsAre(4, 8, 12, 15));
}

TEST(TrainerTest, EvaluatesWhenAskedAndAtTheEnd) {
  const auto evaluated = [](const v1::TrainingSpec& training) {
    std::vector<int64_t> steps;
    for (const auto& point : TrainAlone(1, training)->history()) {
      if (point.has_eval_loss()) steps.push_back(point.step());
    }
    return steps;
  };
  v1::TrainingSpec training = FakeTraining();
  EXPECT_THAT(evaluated(training), ::testing::IsEmpty());
  training.set_eval_strategy(v1::EVAL_STRATEGY_EPOCH);
  EXPECT_THAT(evaluated(training), ::testing::ElementsAre(3, 6, 9, 12, 15));
  training.set_max_steps(7);
  EXPECT_THAT(evaluated(training), ::testing::ElementsAre(3, 6, 7));
  training.set_eval_strategy(v1::EVAL_STRATEGY_STEPS);
  training.set_eval_steps(4);
  training.set_logging_steps(3);
  EXPECT_THAT(evaluated(training), ::testing::ElementsAre(4, 7));
}

TEST(TrainerTest, EveryMicroBatchHasItsOwnDropoutKeyOnWhicheverRank) {
  std::vector<std::vector<uint64_t>> keys(3);
  for (int ranks = 1; ranks <= 2; ++ranks) {
    RunGang(ranks, [&](int rank, std::unique_ptr<Gang> gang) {
      auto trainer = FakeTrainer();
      TrainTo(*trainer, *gang, 3);
      keys[ranks == 1 ? 0 : 1 + rank] = static_cast<FakeModel&>(trainer->model()).dropout_keys;
    });
  }
  const std::set<uint64_t> alone(keys[0].begin(), keys[0].end());
  EXPECT_EQ(alone.size(), 10u);  // 4 + 4 + 2 micro-batches
  std::set<uint64_t> together(keys[1].begin(), keys[1].end());
  together.insert(keys[2].begin(), keys[2].end());
  EXPECT_EQ(together, alone);
}

TEST(TrainerTest, OneRanksWishToLeaveIsEverybodysAtTheSameStep) {
  std::vector<int64_t> left_at(3, -1);
  RunGang(3, [&](int rank, std::unique_ptr<Gang> gang) {
    auto trainer = FakeTrainer();
    bool leave = false;
    while (!leave) {
      ASSERT_TRUE(trainer->Step(*gang, rank == 1 && trainer->step() == 4, &leave).ok());
    }
    left_at[rank] = trainer->step();
  });
  EXPECT_THAT(left_at, ::testing::ElementsAre(5, 5, 5));
}

TEST(TrainerTest, ALossThatIsNoNumberEndsTheTrainingAndChangesNothing) {
  std::vector<std::unique_ptr<Trainer>> trainers(2);
  RunGang(2, [&](int rank, std::unique_ptr<Gang> gang) {
    trainers[rank] = FakeTrainer();
    TrainTo(*trainers[rank], *gang, 3);
    static_cast<FakeModel&>(trainers[rank]->model()).broken = rank == 1;
    bool leave = false;
    const absl::Status status = trainers[rank]->Step(*gang, false, &leave).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(status.message(), HasSubstr("step 4"));
    EXPECT_THAT(status.message(), HasSubstr("learning_rate"));
    EXPECT_FALSE(gang->broken());
    EXPECT_EQ(trainers[rank]->step(), 3);
  });
}

// Ranks die at every possible step and the survivors go on in gangs of other sizes, with newcomers that have nothing:
// the end is the one of an undisturbed training.
TEST(TrainerTest, LosingAndGainingRanksDoesNotChangeTheResult) {
  const auto undisturbed = TrainAlone(1, WithEvaluation());
  for (int64_t lost_at = 0; lost_at < 15; lost_at += 2) {
    std::vector<std::unique_ptr<Trainer>> trainers(3);
    RunGang(3, [&](int rank, std::unique_ptr<Gang> gang) {
      trainers[rank] = FakeTrainer(WithEvaluation());
      ASSERT_TRUE(SyncState(*gang, *trainers[rank]).ok());
      TrainTo(*trainers[rank], *gang, lost_at);
      if (rank == 1) {
        trainers[1] = nullptr;
        return;  // its connections close
      }
      bool leave = false;
      EXPECT_FALSE(trainers[rank]->Step(*gang, false, &leave).ok());
      EXPECT_TRUE(gang->broken());
      EXPECT_EQ(trainers[rank]->step(), lost_at);
    });
    // The second one is new now, and so is a fourth.
    trainers.resize(4);
    RunGang(4, [&](int rank, std::unique_ptr<Gang> gang) {
      if (trainers[rank] == nullptr) trainers[rank] = FakeTrainer(WithEvaluation());
      ASSERT_TRUE(SyncState(*gang, *trainers[rank]).ok());
      EXPECT_EQ(trainers[rank]->step(), lost_at);
      TrainTo(*trainers[rank], *gang, 15);
    });
    for (auto& trainer : trainers) ASSERT_TRUE(SameState(*trainer, *undisturbed)) << "lost at step " << lost_at;
  }
}

// The gang broke while a step was exchanged: rank 1 has applied step 6, rank 0 has not.
TEST(TrainerTest, TheOneThatIsAStepAheadGivesItsStateToTheOther) {
  const auto undisturbed = TrainAlone(1, FakeTraining());
  std::vector<std::unique_ptr<Trainer>> trainers(2);
  for (int rank = 0; rank < 2; ++rank) {
    RunGang(1, [&](int, std::unique_ptr<Gang> gang) {
      trainers[rank] = FakeTrainer();
      TrainTo(*trainers[rank], *gang, 5 + rank);
    });
  }
  RunGang(2, [&](int rank, std::unique_ptr<Gang> gang) {
    ASSERT_TRUE(SyncState(*gang, *trainers[rank]).ok());
    EXPECT_EQ(trainers[rank]->step(), 6);
    TrainTo(*trainers[rank], *gang, 15);
  });
  EXPECT_TRUE(SameState(*trainers[0], *undisturbed));
  EXPECT_TRUE(SameState(*trainers[1], *undisturbed));
}

// Equal numbers of steps with different bits, as from unlike machines: the lowest rank's are taken.
TEST(StateSyncTest, AtTheSameStepTheLowestRankWins) {
  std::vector<std::unique_ptr<Trainer>> trainers(2);
  for (auto& trainer : trainers) trainer = FakeTrainer();
  trainers[0]->model().flat_parameters().fill_(1.0);
  trainers[1]->model().flat_parameters().fill_(2.0);
  RunGang(2, [&](int rank, std::unique_ptr<Gang> gang) { ASSERT_TRUE(SyncState(*gang, *trainers[rank]).ok()); });
  EXPECT_TRUE(SameState(*trainers[0], *trainers[1]));
  EXPECT_EQ(trainers[1]->model().flat_parameters()[0].item().toFloat(), 1.0f);
}

}  // namespace
}  // namespace retort
