// Training adapters of every kind against PEFT and transformers: tests/golden/peft, made by
// tests/golden/make_peft_golden.py.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "model/lora.h"
#include "model/safetensors.h"
#include "model/sft_example.h"
#include "model/training_model.h"
#include "model/weights.h"
#include "tests/model/tokenizer_folder.h"

namespace retort {
namespace {

constexpr double kTolerance = 1e-4;

std::string Golden(const std::string& below) {
  return absl::StrCat(std::getenv("RETORT_SOURCE_DIR"), "/tests/golden/", below);
}

LoraConfig ConfigOf(const nlohmann::json& lora) {
  LoraConfig config;
  config.r = lora.at("r");
  config.lora_alpha = lora.at("lora_alpha");
  config.target_modules = lora.at("target_modules").get<std::vector<std::string>>();
  config.init_lora_weights = lora.at("init_lora_weights");
  return config;
}

class AdapterGoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    at::set_num_threads(1);
    folder_ = Golden("peft/" + GetParam());
    expected_ = ReadJsonFile(folder_ + "/expected.json").value();
    const std::string family = expected_.at("model");
    weights_ = LoadWeights(Golden("families/" + family), at::kFloat, at::kCPU).value();
    ReadRows();
    const auto adapter = expected_.contains("lora")
                             ? InitLora(weights_.config, ConfigOf(expected_.at("lora")), 1, &weights_)
                             : LoadAdapter(folder_ + "/adapter", weights_.config);
    ASSERT_TRUE(adapter.ok()) << adapter.status();
    start_ = *adapter;
    auto model = TrainingModel::Create(weights_, start_, {});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }

  void ReadRows() {
    std::ifstream file(folder_ + "/rows.jsonl");
    for (std::string line; std::getline(file, line);) {
      const auto row = ExampleFromTokens(nlohmann::ordered_json::parse(line), weights_.config.vocab_size);
      ASSERT_TRUE(row.ok()) << row.status();
      rows_.push_back(*row);
    }
  }

  MicroBatch BatchOf(size_t first, size_t count) const {
    MicroBatch batch{.sequence_offsets = {0}};
    for (size_t i = first; i < first + count; ++i) {
      const TrainingExample& row = rows_.at(i);
      const auto begin = static_cast<int64_t>(batch.input_ids.size());
      for (const int32_t start : row.sample_starts) {
        if (start > 0) batch.sequence_offsets.push_back(begin + start);
      }
      batch.input_ids.insert(batch.input_ids.end(), row.input_ids.begin(), row.input_ids.end());
      batch.labels.insert(batch.labels.end(), row.labels.begin(), row.labels.end());
      batch.sequence_offsets.push_back(static_cast<int64_t>(batch.input_ids.size()));
    }
    return batch;
  }

  // Clips and makes one step of AdamW, parameter by parameter.
  void Apply(const at::Tensor& gradient, size_t step) {
    const nlohmann::json& training = expected_.at("training");
    const double norm = gradient.to(at::kDouble).norm().item<double>();
    const double clip = training.at("max_grad_norm").get<double>() / (norm + 1e-6);
    if (clip < 1.0) gradient.mul_(clip);
    const double rate = expected_.at("learning_rates").at(step);
    const double decay = training.at("weight_decay");
    at::Tensor& parameters = model_->flat_parameters();
    if (!mean_.defined()) {
      mean_ = at::zeros_like(parameters);
      square_ = at::zeros_like(parameters);
    }
    for (const ParameterSlice& slice : model_->parameters()) {
      if (slice.decay) parameters.narrow(0, slice.offset, slice.numel).mul_(1.0 - rate * decay);
    }
    const double t = static_cast<double>(step) + 1.0;
    mean_.mul_(0.9).add_(gradient, 0.1);
    square_.mul_(0.999).addcmul_(gradient, gradient, 0.001);
    const at::Tensor root = square_.sqrt().div_(std::sqrt(1.0 - std::pow(0.999, t))).add_(1e-8);
    parameters.addcdiv_(mean_, root, -rate / (1.0 - std::pow(0.9, t)));
  }

  // The adapter as PEFT would find it.
  void ExpectSaved(const LoraAdapter& adapter) {
    TemporaryFolder folder;
    ASSERT_TRUE(SaveAdapter(adapter, folder.path()).ok());
    const SafetensorsFile got = SafetensorsFile::Open(folder / "adapter_model.safetensors").value();
    const SafetensorsFile want = SafetensorsFile::Open(folder_ + "/expected.safetensors").value();
    EXPECT_EQ(got.names(), want.names());
    for (const std::string& name : want.names()) {
      const auto tensor = got.Get(name);
      if (!tensor.ok()) continue;
      const at::Tensor expected = want.Get(name).value();
      ASSERT_EQ(tensor->sizes(), expected.sizes()) << name;
      EXPECT_LE((*tensor - expected).abs().max().item<double>(), kTolerance * expected.abs().max().item<double>())
          << name;
    }
  }

  double LossOf(TrainingModel& model) {
    const auto loss = model.Loss(BatchOf(0, 4));
    EXPECT_TRUE(loss.ok()) << loss.status();
    return loss.ok() ? loss->loss : 0.0;
  }

  std::string folder_;
  nlohmann::json expected_;
  ModelWeights weights_;
  std::vector<TrainingExample> rows_;
  LoraAdapter start_;
  std::unique_ptr<TrainingModel> model_;
  at::Tensor mean_, square_;
};

TEST_P(AdapterGoldenTest, TwentyStepsAsPeft) {
  const nlohmann::json& training = expected_.at("training");
  const size_t micro = training.at("per_device_train_batch_size");
  const size_t steps = expected_.at("losses").size();
  const size_t accumulate = training.at("gradient_accumulation_steps");
  ASSERT_EQ(rows_.size(), steps * micro * accumulate);
  at::Tensor part = at::empty_like(model_->flat_parameters());
  for (size_t step = 0; step < steps; ++step) {
    const size_t first = step * micro * accumulate;
    const auto trained = static_cast<double>(model_->Loss(BatchOf(first, micro * accumulate))->trained_tokens);
    at::Tensor gradient = at::zeros_like(part);
    double loss = 0.0;
    for (size_t i = 0; i < accumulate; ++i) {
      const auto sum = model_->ForwardBackward(BatchOf(first + i * micro, micro), 1.0 / trained, step, part);
      ASSERT_TRUE(sum.ok()) << sum.status();
      loss += sum->loss / trained;
      gradient.add_(part);
    }
    const double want = expected_.at("losses").at(step);
    ASSERT_NEAR(loss, want, kTolerance * want) << "step " << step;
    Apply(gradient, step);
  }
  if (!expected_.contains("lora")) ExpectSaved(model_->ExportAdapter());
}

// What was trained, merged into the base, is the trained model; so it is from the folder that was saved.
TEST_P(AdapterGoldenTest, MergedIsBaseAndAdapter) {
  at::Tensor gradient = at::empty_like(model_->flat_parameters());
  for (size_t step = 0; step < 3; ++step) {
    ASSERT_TRUE(model_->ForwardBackward(BatchOf(4 * step, 4), 0.01, step, gradient).ok());
    model_->flat_parameters().sub_(gradient, 1.0);
  }
  const double trained = LossOf(*model_);
  EXPECT_GT(std::abs(trained - LossOf(*TrainingModel::Create(weights_, start_, {}).value())), 1e-3);

  TemporaryFolder folder;
  ASSERT_TRUE(SaveAdapter(model_->ExportAdapter(), folder.path()).ok());
  const auto saved = LoadAdapter(folder.path(), weights_.config);
  ASSERT_TRUE(saved.ok()) << saved.status();
  EXPECT_NEAR(LossOf(*TrainingModel::Create(weights_, *saved, {}).value()), trained, 1e-4 * trained);
  ModelWeights merged = weights_;
  ASSERT_TRUE(MergeAdapter(*saved, merged).ok());
  // An adapter that changes nothing, on the merged model.
  const LoraAdapter none = InitLora(merged.config, {.r = 1, .target_modules = {"o_proj"}}, 1).value();
  EXPECT_NEAR(LossOf(*TrainingModel::Create(merged, none, {}).value()), trained, 1e-4 * trained);
  // The base is as it was.
  EXPECT_NEAR(LossOf(*TrainingModel::Create(weights_, *saved, {}).value()), trained, 1e-4 * trained);
}

// A checkpoint goes on with the same bits.
TEST_P(AdapterGoldenTest, GoesOnFromASavedAdapter) {
  at::Tensor gradient = at::empty_like(model_->flat_parameters());
  ASSERT_TRUE(model_->ForwardBackward(BatchOf(0, 4), 0.01, 0, gradient).ok());
  model_->flat_parameters().sub_(gradient, 1.0);
  TemporaryFolder folder;
  ASSERT_TRUE(SaveAdapter(model_->ExportAdapter(), folder.path()).ok());
  const auto saved = LoadAdapter(folder.path(), weights_.config, {.keep_frozen = true});
  ASSERT_TRUE(saved.ok()) << saved.status();
  auto again = TrainingModel::Create(weights_, *saved, {}).value();
  ASSERT_EQ(again->parameters().size(), model_->parameters().size());
  EXPECT_TRUE(at::equal(again->flat_parameters(), model_->flat_parameters()));
  at::Tensor other = at::empty_like(gradient);
  ASSERT_TRUE(model_->ForwardBackward(BatchOf(4, 4), 0.01, 1, gradient).ok());
  ASSERT_TRUE(again->ForwardBackward(BatchOf(4, 4), 0.01, 1, other).ok());
  EXPECT_TRUE(at::equal(gradient, other));
}

INSTANTIATE_TEST_SUITE_P(Cases, AdapterGoldenTest,
                         ::testing::Values("llama_lora", "llama_dora_bias", "llama_rslora_patterns", "llama_pissa",
                                           "mistral_saved_modules", "qwen2_bias_all", "qwen2_regex",
                                           "qwen3_dora_rslora", "phi3_fused", "phi3_dora", "deepseek_v3_attention",
                                           "llama_head_embeddings", "llama_tied_head_embeddings", "qwen2_tied_head",
                                           "phi3_dora_head_embeddings", "phi3_saved_embeddings", "deepseek_v2_dora",
                                           "deepseek_v2_all_linear", "deepseek_v3_all_linear"),
                         [](const ::testing::TestParamInfo<std::string>& info) { return info.param; });

}  // namespace
}  // namespace retort
