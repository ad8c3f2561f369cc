#include "tests/student/fake_gang.h"

#include <ATen/Functions.h>

#include <cmath>
#include <limits>
#include <thread>

#include "common/check.h"

namespace retort::testing {
namespace {

float Target(int32_t label, int64_t parameter) {
  return std::sin(static_cast<float>(label) * 1.7F + static_cast<float>(parameter)) *
         std::exp2(static_cast<float>(label % 7));
}

bool SamePoints(const std::vector<v1::LossPoint>& a, const std::vector<v1::LossPoint>& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].SerializeAsString() != b[i].SerializeAsString()) return false;
  }
  return true;
}

}  // namespace

FakeModel::FakeModel(int64_t numel)
    : slices_({{"layer.lora_A", {numel}, 0, numel}}), flat_(at::zeros({numel}, at::kFloat)) {}

LoraAdapter FakeModel::ExportAdapter() const {
  LoraAdapter adapter;
  adapter.config.target_modules = {"layer"};
  adapter.modules["layer"] = {flat_.clone().reshape({1, flat_.numel()}), at::ones({1, 1})};
  return adapter;
}

absl::StatusOr<LossSum> FakeModel::ForwardBackward(const MicroBatch& batch, double grad_scale, uint64_t dropout_key,
                                                   at::Tensor& flat_gradient) {
  dropout_keys.push_back(dropout_key);
  const float* p = flat_.const_data_ptr<float>();
  float* g = flat_gradient.data_ptr<float>();
  LossSum sum;
  for (int64_t i = 0; i < flat_.numel(); ++i) g[i] = 0;
  for (size_t s = 0; s + 1 < batch.sequence_offsets.size(); ++s) {
    for (int64_t t = batch.sequence_offsets[s] + 1; t < batch.sequence_offsets[s + 1]; ++t) {
      if (batch.labels[t] == kIgnoreLabel) continue;
      ++sum.trained_tokens;
      for (int64_t i = 0; i < flat_.numel(); ++i) {
        const float difference = p[i] - Target(batch.labels[t], i);
        g[i] += static_cast<float>(grad_scale) * difference;
        sum.loss += 0.5 * static_cast<double>(difference) * difference;
      }
    }
  }
  if (broken) sum.loss = std::numeric_limits<double>::quiet_NaN();
  return sum;
}

absl::StatusOr<LossSum> FakeModel::Loss(const MicroBatch& batch) {
  at::Tensor gradient = at::empty_like(flat_);
  auto sum = ForwardBackward(batch, 1.0, 0, gradient);
  dropout_keys.pop_back();
  return sum;
}

Dataset FakeDataset(int64_t samples) {
  DatasetBuilder builder(100);
  for (int32_t i = 0; i < samples; ++i) {
    TrainingExample example;
    for (int32_t t = 0; t < 3 + i % 4; ++t) {
      example.input_ids.push_back(10 * i + t);
      example.labels.push_back(t == 1 ? kIgnoreLabel : 10 * i + t);
    }
    builder.Add(example);
  }
  return std::move(builder).Build();
}

v1::TrainingSpec FakeTraining() {
  v1::TrainingSpec training;
  training.set_per_device_train_batch_size(2);
  training.set_gradient_accumulation_steps(4);
  training.set_learning_rate(0.05);
  training.set_lr_scheduler_type(v1::LR_SCHEDULER_TYPE_COSINE);
  training.set_num_train_epochs(5);
  training.set_max_grad_norm(1.0);
  training.set_weight_decay(0.01);
  training.set_seed(42);
  training.set_shuffle(true);
  training.set_adam_beta1(0.9);
  training.set_adam_beta2(0.999);
  training.set_adam_epsilon(1e-8);
  training.set_logging_steps(1);
  training.set_per_device_eval_batch_size(2);
  return training;
}

std::unique_ptr<Trainer> FakeTrainer(const v1::TrainingSpec& training) {
  auto trainer = Trainer::Create(training, std::make_unique<FakeModel>(37), FakeDataset(19), FakeDataset(19));
  RETORT_CHECK(trainer.ok());
  return *std::move(trainer);
}

void RunGang(int ranks, const std::function<void(int rank, std::unique_ptr<Gang> gang)>& body) {
  std::vector<TcpListener> listeners;
  v1::JoinGangResponse membership;
  membership.set_generation(1);
  membership.set_group_secret(std::string(32, 's'));
  for (int rank = 0; rank < ranks; ++rank) {
    auto listener = TcpListener::Listen("127.0.0.1");
    RETORT_CHECK(listener.ok());
    membership.add_members()->set_address(listener->address());
    listeners.push_back(*std::move(listener));
  }
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank, own = membership]() mutable {
      own.set_rank(rank);
      auto gang = Gang::Form(listeners[rank], own, {.numel = 37});
      RETORT_CHECK(gang.ok());
      body(rank, *std::move(gang));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

bool SameState(Trainer& a, Trainer& b) {
  return a.step() == b.step() && at::equal(a.model().flat_parameters(), b.model().flat_parameters()) &&
         at::equal(a.moments().exp_avg, b.moments().exp_avg) &&
         at::equal(a.moments().exp_avg_sq, b.moments().exp_avg_sq) && SamePoints(a.history(), b.history());
}

}  // namespace retort::testing
