// TrainingModel against transformers and PEFT: tests/golden/training, made by tests/golden/make_training_golden.py.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/json.h"
#include "model/lora.h"
#include "model/safetensors.h"
#include "model/sft_example.h"
#include "model/training_model.h"
#include "model/weights.h"

namespace retort {
namespace {

class TrainingGoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    folder_ = absl::StrCat(std::getenv("RETORT_SOURCE_DIR"), "/tests/golden/training/", GetParam());
    auto weights = LoadWeights(folder_, at::kFloat, at::kCPU);
    ASSERT_TRUE(weights.ok()) << weights.status();
    auto adapter = LoadAdapter(absl::StrCat(folder_, "/adapter"), weights->config);
    ASSERT_TRUE(adapter.ok()) << adapter.status();
    auto model = TrainingModel::Create(*weights, *adapter, {});
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    auto expected = ReadJsonFile(absl::StrCat(folder_, "/expected.json"));
    auto batches = ReadJsonFile(absl::StrCat(folder_, "/batches.json"));
    ASSERT_TRUE(expected.ok() && batches.ok());
    expected_ = *expected;
    batches_ = *batches;
  }

  static MicroBatch BatchOf(const nlohmann::json& rows) {
    MicroBatch batch{.sequence_offsets = {0}};
    for (const nlohmann::json& row : rows) {
      for (const int32_t id : row.at("input_ids")) batch.input_ids.push_back(id);
      for (const int32_t label : row.at("labels")) batch.labels.push_back(label);
      batch.sequence_offsets.push_back(static_cast<int64_t>(batch.input_ids.size()));
    }
    return batch;
  }

  void ExpectTensors(const at::Tensor& flat, const std::string& kind) {
    auto file = SafetensorsFile::Open(absl::StrCat(folder_, "/expected.safetensors"));
    ASSERT_TRUE(file.ok()) << file.status();
    for (const ParameterSlice& slice : model_->parameters()) {
      const auto want = file->Get(absl::StrCat(kind, ".", slice.name));
      ASSERT_TRUE(want.ok()) << want.status();
      const at::Tensor got = flat.narrow(0, slice.offset, slice.numel).view(slice.shape);
      EXPECT_LE((got - *want).abs().max().item<float>(), 1e-4F * want->abs().max().item<float>())
          << kind << " " << slice.name;
    }
  }

  std::string folder_;
  std::unique_ptr<TrainingModel> model_;
  nlohmann::json expected_, batches_;
};

TEST_P(TrainingGoldenTest, TwentyAdamWStepsAsPeft) {
  const double rate = expected_.at("learning_rate");
  const double decay = expected_.at("weight_decay");
  at::Tensor& parameters = model_->flat_parameters();
  at::Tensor gradient = at::empty_like(parameters);
  at::Tensor mean = at::zeros_like(parameters);
  at::Tensor square = at::zeros_like(parameters);
  for (size_t step = 0; step < batches_.size(); ++step) {
    const MicroBatch batch = BatchOf(batches_[step]);
    const auto loss = model_->Loss(batch);
    ASSERT_TRUE(loss.ok()) << loss.status();
    const auto trained = static_cast<double>(loss->trained_tokens);
    const auto sum = model_->ForwardBackward(batch, 1.0 / trained, step, gradient);
    ASSERT_TRUE(sum.ok()) << sum.status();
    const double want = expected_.at("losses").at(step);
    EXPECT_NEAR(sum->loss / trained, want, 1e-4 * want) << "step " << step;
    if (step == 0) ExpectTensors(gradient, "gradient");
    const double t = static_cast<double>(step) + 1.0;
    parameters.mul_(1.0 - rate * decay);
    mean.mul_(0.9).add_(gradient, 0.1);
    square.mul_(0.999).addcmul_(gradient, gradient, 0.001);
    const at::Tensor root = (square / (1.0 - std::pow(0.999, t))).sqrt_().add_(1e-8);
    parameters.addcdiv_(mean, root, -rate / (1.0 - std::pow(0.9, t)));
  }
  ExpectTensors(parameters, "final");
}

TEST_P(TrainingGoldenTest, LogProbabilitiesAsTransformers) {
  const nlohmann::json& scored = expected_.at("logprobs");
  const std::vector<int32_t> ids = scored.at("input_ids");
  for (size_t i = 1; i < ids.size(); ++i) {
    MicroBatch batch{.input_ids = ids,
                     .labels = std::vector<int32_t>(ids.size(), kIgnoreLabel),
                     .sequence_offsets = {0, static_cast<int64_t>(ids.size())}};
    batch.labels[i] = ids[i];
    const auto loss = model_->Loss(batch);
    ASSERT_TRUE(loss.ok()) << loss.status();
    EXPECT_NEAR(-loss->loss, scored.at("values").at(i - 1).get<double>(), 1e-4) << "token " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, TrainingGoldenTest, ::testing::Values("tied", "untied_llama3"),
                         [](const ::testing::TestParamInfo<std::string>& info) { return info.param; });

}  // namespace
}  // namespace retort
