// TrainingModel's hand-written backward pass against f64 autograd, at odd sizes.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>

#include "model/sft_example.h"
#include "model/training/aten_training_model.h"
#include "model/training/dropout.h"
#include "model/training/fused_training_model.h"
#include "model/training_model.h"
#include "tests/model/training_reference.h"

namespace retort {
namespace {

using ::retort::testing::ReferenceForwardBackward;
using ::retort::testing::ReferenceResult;

ModelConfig Config(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t hidden, int64_t intermediate,
                   int64_t vocab, bool tied) {
  ModelConfig config;
  config.model_type = "llama";
  config.vocab_size = vocab;
  config.hidden_size = hidden;
  config.intermediate_size = intermediate;
  config.num_hidden_layers = 2;
  config.num_attention_heads = heads;
  config.num_key_value_heads = kv_heads;
  config.head_dim = head_dim;
  config.max_position_embeddings = 4096;
  config.rms_norm_eps = 1e-5;
  config.tie_word_embeddings = tied;
  FillDerived(config);
  return config;
}

at::Tensor Normal(std::mt19937& random, at::IntArrayRef shape, double deviation) {
  at::Tensor tensor = at::empty(shape, at::kFloat);
  std::normal_distribution<float> normal(0.0F, static_cast<float>(deviation));
  float* data = tensor.mutable_data_ptr<float>();
  for (int64_t i = 0; i < tensor.numel(); ++i) data[i] = normal(random);
  return tensor;
}

at::Tensor Matrix(std::mt19937& random, int64_t out_features, int64_t in_features) {
  return Normal(random, {out_features, in_features}, 1.0 / std::sqrt(static_cast<double>(in_features)));
}

ModelWeights Weights(std::mt19937& random, const ModelConfig& c) {
  ModelWeights weights{.config = c};
  weights.embed_tokens = Normal(random, {c.vocab_size, c.hidden_size}, 0.7);
  weights.lm_head = c.tie_word_embeddings ? weights.embed_tokens : Matrix(random, c.vocab_size, c.hidden_size);
  weights.final_norm = Normal(random, {c.hidden_size}, 0.2) + 1.0;
  const int64_t q_width = c.num_attention_heads * c.head_dim;
  const int64_t kv_width = c.num_key_value_heads * c.head_dim;
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
    LayerWeights w;
    w.input_norm = Normal(random, {c.hidden_size}, 0.2) + 1.0;
    w.post_attention_norm = Normal(random, {c.hidden_size}, 0.2) + 1.0;
    w[kQ].weight = Matrix(random, q_width, c.hidden_size);
    w[kK].weight = Matrix(random, kv_width, c.hidden_size);
    w[kV].weight = Matrix(random, kv_width, c.hidden_size);
    w[kO].weight = Matrix(random, c.hidden_size, q_width);
    w[kGate].weight = Matrix(random, c.intermediate_size, c.hidden_size);
    w[kUp].weight = Matrix(random, c.intermediate_size, c.hidden_size);
    w[kDown].weight = Matrix(random, c.hidden_size, c.intermediate_size);
    if (c.qkv_bias) {
      w[kQ].bias = Normal(random, {q_width}, 0.2);
      w[kK].bias = Normal(random, {kv_width}, 0.2);
      w[kV].bias = Normal(random, {kv_width}, 0.2);
      w[kO].bias = Normal(random, {c.hidden_size}, 0.2);
    }
    weights.layers.push_back(w);
  }
  return weights;
}

LoraAdapter Adapter(std::mt19937& random, const ModelConfig& config, int64_t rank,
                    const std::vector<std::string>& targets) {
  LoraAdapter adapter;
  adapter.config = {.r = rank, .lora_alpha = 2.5 * static_cast<double>(rank), .target_modules = targets};
  for (const LoraModule& module : LinearModules(config)) {
    for (const std::string& target : targets) {
      if (!module.name.ends_with(target)) continue;
      adapter.modules[module.name] = {Matrix(random, rank, module.in_features),
                                      Normal(random, {module.out_features, rank}, 0.1)};
    }
  }
  return adapter;
}

const std::vector<std::string> kAllLinear = {"down_proj", "gate_proj", "k_proj", "o_proj",
                                             "q_proj",    "up_proj",   "v_proj"};

MicroBatch Batch(std::mt19937& random, int64_t vocab, const std::vector<int64_t>& lengths, double ignored) {
  MicroBatch batch{.sequence_offsets = {0}};
  for (const int64_t length : lengths) {
    for (int64_t i = 0; i < length; ++i) {
      const auto id = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab));
      batch.input_ids.push_back(id);
      const bool ignore = std::uniform_real_distribution<double>()(random) < ignored;
      batch.labels.push_back(ignore ? kIgnoreLabel : id);
    }
    batch.sequence_offsets.push_back(static_cast<int64_t>(batch.input_ids.size()));
  }
  return batch;
}

struct Case {
  std::string name;
  ModelConfig config;
  int64_t rank = 4;
  std::vector<std::string> targets = kAllLinear;
  std::vector<int64_t> lengths;
  double ignored = 0.3;
  double dropout = 0.0;
  bool biased = false;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

using Factory = absl::StatusOr<std::unique_ptr<TrainingModel>> (*)(ModelWeights, const LoraAdapter&,
                                                                   const TrainingModelOptions&);

void ExpectAutogradsGradient(Case c, Factory make) {
  c.config.qkv_bias = c.config.o_bias = c.biased;
  std::mt19937 random(17);
  at::set_num_threads(3);  // more than some cases have rows for
  const ModelWeights weights = Weights(random, c.config);
  const LoraAdapter adapter = Adapter(random, c.config, c.rank, c.targets);
  const MicroBatch batch = Batch(random, c.config.vocab_size, c.lengths, c.ignored);
  auto model = make(weights, adapter, {.lora_dropout = c.dropout});
  ASSERT_TRUE(model.ok()) << model.status();
  at::set_num_threads(1);
  at::Tensor gradient = at::full({(*model)->flat_parameters().numel()}, 7.0, at::kFloat);  // must be overwritten
  const double grad_scale = 0.125;
  const auto sum = (*model)->ForwardBackward(batch, grad_scale, 99, gradient);
  ASSERT_TRUE(sum.ok()) << sum.status();

  const ReferenceResult expected = ReferenceForwardBackward(weights, adapter, batch, c.dropout, 99);
  EXPECT_NEAR(sum->loss, expected.loss, 2e-6 * std::abs(expected.loss) + 1e-9);
  ASSERT_EQ((*model)->parameters().size(), expected.gradient.size());
  for (const ParameterSlice& slice : (*model)->parameters()) {
    const at::Tensor got = gradient.narrow(0, slice.offset, slice.numel).view(slice.shape).to(at::kDouble);
    const at::Tensor want = expected.gradient.at(slice.name) * grad_scale;
    const double largest = want.abs().max().item<double>();
    EXPECT_LE((got - want).abs().max().item<double>(), 2e-5 * largest + 1e-12) << slice.name << " largest " << largest;
  }
}

class TrainingGradientTest : public ::testing::TestWithParam<Case> {};

TEST_P(TrainingGradientTest, EqualsAutogradInF64) { ExpectAutogradsGradient(GetParam(), &TrainingModel::Create); }

TEST_P(TrainingGradientTest, ThroughAtenEqualsAutogradInF64) {
  ExpectAutogradsGradient(GetParam(), &MakeAtenTrainingModel);
}

TEST_P(TrainingGradientTest, FusedEqualsAutogradInF64) { ExpectAutogradsGradient(GetParam(), &MakeFusedTrainingModel); }

INSTANTIATE_TEST_SUITE_P(
    Shapes, TrainingGradientTest,
    ::testing::Values(
        Case{.name = "grouped_tied", .config = Config(6, 2, 8, 40, 56, 101, true), .lengths = {13, 1, 7, 2}},
        Case{.name = "one_kv_head", .config = Config(5, 1, 6, 22, 34, 67, false), .rank = 3, .lengths = {9, 31}},
        Case{.name = "multi_head_biased",
             .config = Config(3, 3, 10, 18, 50, 39, false),
             .lengths = {5, 6},
             .biased = true},
        Case{.name = "some_modules",
             .config = Config(4, 2, 4, 16, 24, 33, true),
             .rank = 2,
             .targets = {"k_proj", "up_proj"},
             .lengths = {8, 3}},
        Case{.name = "rank_above_width", .config = Config(2, 1, 4, 8, 12, 19, true), .rank = 11, .lengths = {6}},
        Case{.name = "dropout", .config = Config(4, 2, 8, 24, 40, 57, true), .lengths = {17, 4}, .dropout = 0.25},
        Case{.name = "one_trained_label",
             .config = Config(4, 2, 8, 24, 40, 57, false),
             .lengths = {2, 1},
             .ignored = 0.0},
        Case{.name = "long_rows", .config = Config(2, 1, 16, 32, 40, 300, true), .lengths = {600, 70}, .ignored = 0.9},
        Case{.name = "wide_as_smollm2",
             .config = Config(9, 3, 64, 576, 1536, 500, true),
             .rank = 16,
             .lengths = {33, 20}}),
    [](const ::testing::TestParamInfo<Case>& info) { return info.param.name; });

// What the reference above has not: the norms of heads, windows, fused modules, heads turned in part.
TEST(FusedTrainingTest, EqualsAtenInEveryFamily) {
  ModelConfig qwen3 = Config(6, 2, 8, 40, 56, 101, true);
  qwen3.qk_norm = true;
  ModelConfig phi3 = Config(4, 4, 16, 48, 40, 77, false);
  phi3.fused_projections = true;
  phi3.rope.dim = 12;
  phi3.sliding_window = {0, 5};
  ModelConfig biased = Config(4, 1, 8, 24, 32, 50, false);
  biased.qkv_bias = biased.o_bias = biased.mlp_bias = true;
  at::set_num_threads(1);
  for (const ModelConfig& config : {qwen3, phi3, biased}) {
    std::mt19937 random(23);
    ModelWeights weights = RandomWeights(config, at::kFloat, at::kCPU, 3);
    ConvertWeights(weights, [&](const at::Tensor& t) { return t * 5.0 + Normal(random, t.sizes(), 0.1); });
    const LoraAdapter adapter = Adapter(
        random, config, 3, {"q_proj", "v_proj", "o_proj", "qkv_proj", "gate_up_proj", "gate_proj", "down_proj"});
    const MicroBatch batch = Batch(random, config.vocab_size, {19, 1, 8}, 0.3);
    std::vector<at::Tensor> gradients;
    std::vector<double> losses;
    const auto run = [&](Factory make, GradientCheckpointing checkpointing) {
      auto model = make(weights, adapter, {.gradient_checkpointing = checkpointing});
      ASSERT_TRUE(model.ok()) << model.status();
      gradients.push_back(at::full({(*model)->flat_parameters().numel()}, 7.0, at::kFloat));
      const auto sum = (*model)->ForwardBackward(batch, 0.5, 1, gradients.back());
      ASSERT_TRUE(sum.ok()) << sum.status();
      losses.push_back(sum->loss);
      EXPECT_NEAR((*model)->Loss(batch)->loss, sum->loss, 1e-5 * sum->loss);
    };
    run(&MakeAtenTrainingModel, GradientCheckpointing::kNever);
    run(&MakeFusedTrainingModel, GradientCheckpointing::kNever);
    run(&MakeFusedTrainingModel, GradientCheckpointing::kAlways);
    ASSERT_EQ(gradients.size(), 3u);
    EXPECT_NEAR(losses[0], losses[1], 1e-5 * losses[0]);
    EXPECT_LE((gradients[0] - gradients[1]).abs().max().item<float>(), 2e-5F * gradients[0].abs().max().item<float>());
    EXPECT_TRUE(at::equal(gradients[1], gradients[2])) << "computed again it must be the same";
  }
}

TEST(FusedTrainingTest, CheckpointingIsRefusedWhereItIsNot) {
  std::mt19937 random(2);
  const ModelConfig config = Config(4, 2, 8, 32, 48, 61, true);
  const ModelWeights weights = Weights(random, config);
  LoraAdapter adapter = Adapter(random, config, 4, kAllLinear);
  const TrainingModelOptions options{.gradient_checkpointing = GradientCheckpointing::kAlways};
  EXPECT_TRUE(TrainingModel::Create(weights, adapter, options).ok());
  adapter.config.use_dora = true;
  for (auto& [name, pair] : adapter.modules) pair.magnitude = at::ones({pair.b.size(0)});
  EXPECT_EQ(TrainingModel::Create(weights, adapter, options).status().code(), absl::StatusCode::kUnimplemented);
}

class TrainingModelTest : public ::testing::Test {
 protected:
  void SetUp() override { at::set_num_threads(1); }

  std::mt19937 random_{5};
  ModelConfig config_ = Config(4, 2, 8, 32, 48, 61, true);
  ModelWeights weights_ = Weights(random_, config_);
  LoraAdapter adapter_ = Adapter(random_, config_, 4, kAllLinear);

  std::unique_ptr<TrainingModel> Make(const TrainingModelOptions& options = {}) {
    auto model = TrainingModel::Create(weights_, adapter_, options);
    EXPECT_TRUE(model.ok()) << model.status();
    return *std::move(model);
  }
  at::Tensor Gradient(TrainingModel& model, const MicroBatch& batch, uint64_t key = 1) {
    at::Tensor gradient = at::empty({model.flat_parameters().numel()}, at::kFloat);
    const auto sum = model.ForwardBackward(batch, 1.0, key, gradient);
    EXPECT_TRUE(sum.ok()) << sum.status();
    return gradient;
  }
};

TEST_F(TrainingModelTest, NothingTrainedGivesZeros) {
  auto model = Make();
  MicroBatch batch = Batch(random_, 61, {5, 1}, 1.0);
  batch.labels[0] = 3;  // a sample's first label has nothing that predicts it
  at::Tensor gradient = at::ones({model->flat_parameters().numel()}, at::kFloat);
  const auto sum = model->ForwardBackward(batch, 1.0, 0, gradient);
  ASSERT_TRUE(sum.ok());
  EXPECT_EQ(sum->trained_tokens, 0);
  EXPECT_EQ(sum->loss, 0.0);
  EXPECT_EQ(gradient.abs().max().item<float>(), 0.0F);
}

TEST_F(TrainingModelTest, SameBitsTwiceAndAfterOtherBatches) {
  auto model = Make({.lora_dropout = 0.1});
  const MicroBatch batch = Batch(random_, 61, {29, 3, 11}, 0.2);
  const at::Tensor first = Gradient(*model, batch);
  Gradient(*model, Batch(random_, 61, {47, 50, 2}, 0.0));
  EXPECT_TRUE(at::equal(first, Gradient(*model, batch)));
  EXPECT_TRUE(at::equal(first, Gradient(*Make({.lora_dropout = 0.1}), batch)));
  EXPECT_FALSE(at::equal(first, Gradient(*model, batch, /*key=*/2))) << "another key must give another mask";
}

TEST_F(TrainingModelTest, SameBitsForAnyNumberOfThreads) {
  const MicroBatch batch = Batch(random_, 61, {150, 3, 70}, 0.2);
  const at::Tensor one = Gradient(*Make({.lora_dropout = 0.1}), batch);
  for (const int threads : {2, 3, 5}) {
    at::set_num_threads(threads);
    EXPECT_TRUE(at::equal(one, Gradient(*Make({.lora_dropout = 0.1}), batch))) << threads;
  }
}

TEST_F(TrainingModelTest, LossIsWhatForwardBackwardReports) {
  auto model = Make();
  const MicroBatch batch = Batch(random_, 61, {12, 9}, 0.4);
  at::Tensor gradient = at::empty({model->flat_parameters().numel()}, at::kFloat);
  const auto trained = model->ForwardBackward(batch, 1.0, 0, gradient);
  const auto loss = model->Loss(batch);
  ASSERT_TRUE(trained.ok() && loss.ok());
  EXPECT_NEAR(trained->loss, loss->loss, 1e-6 * loss->loss);
  EXPECT_EQ(trained->trained_tokens, loss->trained_tokens);
}

TEST_F(TrainingModelTest, OptimizerWritesAreSeenAndExported) {
  auto model = Make();
  const MicroBatch batch = Batch(random_, 61, {12}, 0.0);
  const double before = model->Loss(batch)->loss;
  model->flat_parameters().mul_(-0.5);
  EXPECT_GT(std::abs(model->Loss(batch)->loss - before), 1e-3);
  const LoraAdapter exported = model->ExportAdapter();
  ASSERT_EQ(exported.modules.size(), adapter_.modules.size());
  for (const auto& [name, pair] : exported.modules) {
    EXPECT_TRUE(at::equal(pair.a, adapter_.modules.at(name).a * -0.5)) << name;
    EXPECT_TRUE(at::equal(pair.b, adapter_.modules.at(name).b * -0.5)) << name;
  }
}

TEST_F(TrainingModelTest, Bf16IsNearF32) {
  const MicroBatch batch = Batch(random_, 61, {25, 14}, 0.0);
  const at::Tensor exact = Gradient(*Make(), batch);
  ModelWeights narrow = weights_;
  for (at::Tensor* t : {&narrow.embed_tokens, &narrow.final_norm, &narrow.lm_head}) *t = t->to(at::kBFloat16);
  for (LayerWeights& w : narrow.layers) {
    for (at::Tensor* t : {&w.input_norm, &w[kQ].weight, &w[kK].weight, &w[kV].weight, &w[kO].weight,
                          &w.post_attention_norm, &w[kGate].weight, &w[kUp].weight, &w[kDown].weight}) {
      *t = t->to(at::kBFloat16);
    }
  }
  auto model = TrainingModel::Create(narrow, adapter_, {.compute_dtype = at::kBFloat16});
  ASSERT_TRUE(model.ok()) << model.status();
  const at::Tensor rounded = Gradient(**model, batch);
  EXPECT_EQ(rounded.scalar_type(), at::kFloat);
  EXPECT_LT((rounded - exact).norm().item<double>(), 0.06 * exact.norm().item<double>());
}

TEST_F(TrainingModelTest, RefusesWhatDoesNotFit) {
  using ::testing::HasSubstr;
  auto model = Make();
  at::Tensor gradient = at::empty({model->flat_parameters().numel()}, at::kFloat);
  MicroBatch batch = Batch(random_, 61, {4}, 0.0);
  batch.input_ids[2] = 61;
  const auto outside = model->ForwardBackward(batch, 1.0, 0, gradient);
  EXPECT_EQ(outside.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(outside.status().message()), HasSubstr("input_ids[2] = 61"));
  batch.input_ids[2] = 60;
  batch.labels[1] = -7;
  EXPECT_EQ(model->Loss(batch).status().code(), absl::StatusCode::kInvalidArgument);
  batch.labels[1] = 1;
  batch.sequence_offsets = {0, 3};
  EXPECT_EQ(model->Loss(batch).status().code(), absl::StatusCode::kInvalidArgument);

  EXPECT_EQ(TrainingModel::Create(weights_, adapter_, {.compute_dtype = at::kBFloat16}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(TrainingModel::Create(weights_, adapter_, {.lora_dropout = 1.0}).status().code(),
            absl::StatusCode::kInvalidArgument);
  ModelWeights with_dropout = weights_;
  with_dropout.config.activation_dropout = "attention_dropout";
  const auto dropping = TrainingModel::Create(with_dropout, adapter_, {});
  EXPECT_EQ(dropping.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(dropping.status().message()), HasSubstr("attention_dropout"));
  adapter_.modules.begin()->second.a = at::zeros({4, 5});
  const auto misfit = TrainingModel::Create(weights_, adapter_, {});
  EXPECT_EQ(misfit.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(misfit.status().message()), HasSubstr(adapter_.modules.begin()->first));
}

TEST(DropoutMaskTest, KeepsTheAskedShareAndScalesIt) {
  const at::Tensor mask = DropoutMask(3, 1, 0.2, 301, 103, at::kCPU);
  const double kept = mask.gt(0).to(at::kDouble).mean().item<double>();
  EXPECT_NEAR(kept, 0.8, 0.01);
  EXPECT_FLOAT_EQ(mask.max().item<float>(), 1.25F);
  EXPECT_FALSE(at::equal(mask, DropoutMask(3, 2, 0.2, 301, 103, at::kCPU)));
  EXPECT_TRUE(at::equal(mask.narrow(0, 0, 7), DropoutMask(3, 1, 0.2, 7, 103, at::kCPU)));
}

}  // namespace
}  // namespace retort
