// TrainingModel on a GPU, by the hand-written step and by autograd, against f32 on the CPU. Needs a GPU; with
// libretort_train.so it takes the kernels, without it ATen.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <random>

#include "model/device.h"
#include "model/training/aten_training_model.h"
#include "model/training/fused_training_model.h"
#include "model/training_model.h"

namespace retort {
namespace {

ModelConfig Config(int64_t heads, int64_t kv_heads, int64_t head_dim) {
  ModelConfig config;
  config.model_type = "llama";
  config.vocab_size = 1003;
  config.hidden_size = 200;
  config.intermediate_size = 328;
  config.num_hidden_layers = 3;
  config.num_attention_heads = heads;
  config.num_key_value_heads = kv_heads;
  config.head_dim = head_dim;
  config.max_position_embeddings = 4096;
  config.rms_norm_eps = 1e-5;
  FillDerived(config);
  return config;
}

MicroBatch Batch(std::mt19937& random, int64_t vocab, const std::vector<int64_t>& lengths) {
  MicroBatch batch{.sequence_offsets = {0}};
  for (const int64_t length : lengths) {
    for (int64_t i = 0; i < length; ++i) {
      batch.input_ids.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(vocab)));
      batch.labels.push_back(i % 3 == 0 ? -100 : batch.input_ids.back());
    }
    batch.sequence_offsets.push_back(static_cast<int64_t>(batch.input_ids.size()));
  }
  return batch;
}

using Factory = absl::StatusOr<std::unique_ptr<TrainingModel>> (*)(ModelWeights, const LoraAdapter&,
                                                                   const TrainingModelOptions&);

class TrainingModelGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto device = ChooseDevice("cuda");
    if (!device.ok()) GTEST_SKIP() << device.status();
    device_ = *device;
    std::printf("seed %u\n", seed_);
  }

  void Prepare(const ModelConfig& config) {
    weights_ = RandomWeights(config, at::kFloat, at::kCPU, seed_);
    ConvertWeights(weights_, [](const at::Tensor& t) { return t + at::randn(t.sizes()) * 0.05; });
    auto adapter = InitLora(config, {.r = 8, .lora_alpha = 16, .target_modules = {"all-linear"}}, seed_);
    ASSERT_TRUE(adapter.ok()) << adapter.status();
    adapter_ = *std::move(adapter);
    for (auto& [name, pair] : adapter_.modules) pair.b.normal_(0.0, 0.05);
  }

  at::Tensor Gradient(Factory make, c10::Device device, const MicroBatch& batch, TrainingModelOptions options,
                      double* loss) {
    ModelWeights moved = weights_;
    ConvertWeights(moved, [&](const at::Tensor& t) { return t.to(device, options.compute_dtype); });
    auto model = make(std::move(moved), adapter_, options);
    EXPECT_TRUE(model.ok()) << model.status();
    at::Tensor gradient = at::full({(*model)->flat_parameters().numel()}, NAN, (*model)->flat_parameters().options());
    const auto sum = (*model)->ForwardBackward(batch, 0.01, 3, gradient);
    EXPECT_TRUE(sum.ok()) << sum.status();
    *loss = sum->loss;
    return gradient.cpu();
  }

  c10::Device device_ = c10::kCPU;
  uint32_t seed_ = std::random_device()();
  std::mt19937 random_{seed_};
  ModelWeights weights_;
  LoraAdapter adapter_;
};

TEST_F(TrainingModelGpuTest, NearTheCpuAndTheSameTwice) {
  struct Case {
    const char* name;
    Factory make;
    TrainingModelOptions options;
    double bound;
  };
  const TrainingModelOptions single{};
  TrainingModelOptions half{.compute_dtype = at::kBFloat16};
  TrainingModelOptions again = half;
  again.gradient_checkpointing = GradientCheckpointing::kAlways;
  TrainingModelOptions dropping = single;
  dropping.lora_dropout = 0.1;
  TrainingModelOptions free = half;
  free.deterministic = false;
  const Case cases[] = {{"fused f32", &MakeFusedTrainingModel, single, 1e-4},
                        {"fused f32 dropout", &MakeFusedTrainingModel, dropping, 1e-4},
                        {"fused bf16", &MakeFusedTrainingModel, half, 5e-2},
                        {"fused bf16 recomputed", &MakeFusedTrainingModel, again, 5e-2},
                        {"fused bf16, bits free", &MakeFusedTrainingModel, free, 5e-2},
                        {"aten bf16", &MakeAtenTrainingModel, half, 5e-2}};
  for (const int64_t head_dim : {64, 40}) {
    Prepare(Config(4, 2, head_dim));
    for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{130, 1, 67}, std::vector<int64_t>{128, 128}}) {
      const MicroBatch batch = Batch(random_, 1003, lengths);
      for (const Case& c : cases) {
        double expected_loss = 0.0, loss = 0.0, same_loss = 0.0;
        TrainingModelOptions exact = c.options;
        exact.compute_dtype = at::kFloat;
        const at::Tensor expected = Gradient(&MakeAtenTrainingModel, c10::kCPU, batch, exact, &expected_loss);
        const at::Tensor got = Gradient(c.make, device_, batch, c.options, &loss);
        const double error = ((got - expected).norm() / expected.norm()).item<double>();
        std::printf("%-24s head_dim %lld samples %zu: gradient %.2e, loss %.2e\n", c.name,
                    static_cast<long long>(head_dim), lengths.size(), error, std::abs(loss / expected_loss - 1.0));
        EXPECT_LE(error, c.bound) << c.name;
        EXPECT_NEAR(loss, expected_loss, c.bound * 0.1 * expected_loss) << c.name;
        if (!c.options.deterministic) continue;
        EXPECT_TRUE(at::equal(got, Gradient(c.make, device_, batch, c.options, &same_loss))) << c.name;
        EXPECT_EQ(loss, same_loss) << c.name;
      }
    }
  }
}

}  // namespace
}  // namespace retort
