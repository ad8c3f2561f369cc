#include "cli/plan/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "cli/spec/job_file.h"

namespace retort::cli {
namespace {

v1::JobSpec Spec(const std::string& text) {
  Diagnostics diagnostics;
  v1::JobSpec spec = ParseJobSpec(text, "job.yaml", {}, &diagnostics).spec;
  EXPECT_EQ(diagnostics.ToString(), "");
  return spec;
}

ModelFacts Model() {
  ModelFacts facts{.parameters = 1000,
                   .layers = 2,
                   .hidden_size = 8,
                   .intermediate_size = 16,
                   .attention_heads = 2,
                   .key_value_heads = 1,
                   .head_dim = 4,
                   .vocab_size = 100,
                   .max_positions = 64};
  facts.linears = {{.name = "model.layers.0.self_attn.q_proj.weight", .shape = {8, 8}},
                   {.name = "model.layers.0.mlp.up_proj.weight", .shape = {16, 8}}};
  return facts;
}

TEST(PlanTest, TrainingOverADataset) {
  v1::JobSpec spec = Spec(R"(name: d
dataset: [{path: t.jsonl}, {path: v.jsonl, split: validation}]
student:
  model_name_or_path: m
  lora: {r: 4, target_modules: [q_proj]}
  training: {per_device_train_batch_size: 2, gradient_accumulation_steps: 4, num_train_epochs: 2}
  workers: {min: 1, max: 6}
)");
  spec.mutable_dataset(0)->set_rows(100);
  spec.mutable_dataset(1)->set_rows(7);
  const ModelFacts model = Model();
  const JobPlan plan = MakePlan(spec, {"train"}, {}, nullptr, &model);
  ASSERT_TRUE(plan.train.has_value());
  EXPECT_TRUE(plan.train->rows_exact);
  EXPECT_EQ(plan.train->rows, 100);
  EXPECT_EQ(plan.train->validation_rows, 7);
  EXPECT_EQ(plan.train->batch, 8);
  EXPECT_EQ(plan.train->steps, 26);
  EXPECT_EQ(plan.train->max_workers, 4);
  EXPECT_THAT(plan.train->shares, testing::ElementsAre(1, 1, 1, 1));
  EXPECT_THAT(plan.notes, testing::ElementsAre(
                              "student.workers.max is 6, but a step has 4 micro-batches "
                              "(student.training.gradient_accumulation_steps): no more workers than that are placed"));
  ASSERT_EQ(plan.memory.size(), 1u);
  EXPECT_EQ(plan.memory[0].weights, 4000);
  EXPECT_EQ(plan.memory[0].adapter, 4 * (8 + 8) * 4);
  EXPECT_EQ(plan.memory[0].optimizer, 2 * plan.memory[0].adapter);
  EXPECT_EQ(plan.disk.checkpoint, 3 * plan.memory[0].adapter);
}

TEST(PlanTest, ModulesThatAreTrainedWholeCount) {
  v1::JobSpec spec = Spec(R"(name: d
dataset: [{path: t.jsonl}]
student:
  model_name_or_path: m
  add_tokens: ["<think>", "</think>"]
  lora: {r: 4, target_modules: [q_proj], modules_to_save: [norm]}
)");
  spec.mutable_dataset(0)->set_rows(100);
  ModelFacts model = Model();
  model.tensors = {{.name = "model.embed_tokens.weight", .shape = {100, 8}},
                   {.name = "model.norm.weight", .shape = {8}},
                   {.name = "model.layers.0.self_attn.q_norm.weight", .shape = {4}}};
  TokenAdditions additions;
  additions.tokens = {{"<think>", 100, false}, {"</think>", 5, true}};
  additions.rows = 101;
  const auto adapter = [&] { return MakePlan(spec, {"train"}, {}, nullptr, &model, additions).memory[0].adapter / 4; };
  EXPECT_EQ(adapter(), 4 * (8 + 8) + 8 + 2 * 101 * 8) << "embedding and head";
  model.tied = true;
  EXPECT_EQ(adapter(), 4 * (8 + 8) + 8 + 101 * 8);
  EXPECT_THAT(MakePlan(spec, {"train"}, {}, nullptr, &model, additions).notes,
              testing::ElementsAre("<think> is added as token 100", "</think> is token 5 already and stays it",
                                   testing::StartsWith("embed_tokens and lm_head are trained whole")));
  additions.tokens.erase(additions.tokens.begin());
  EXPECT_EQ(adapter(), 4 * (8 + 8) + 8) << "nothing is new";
}

TEST(PlanTest, CountsAQuantisedBase) {
  const auto weights = [](const std::string& keys, const ModelFacts& model) {
    const v1::JobSpec spec =
        Spec("name: d\ndataset: [{path: t.jsonl}]\nstudent: {model_name_or_path: m, lora: {r: 4}" + keys + "}\n");
    return MakePlan(spec, {"train"}, {}, nullptr, &model).memory[0].weights;
  };
  ModelFacts model = Model();
  model.parameters = 10000 + 65536;
  model.linear_parameters = 65536;
  model.largest_linear = 2048;
  EXPECT_EQ(weights("", model), 4 * (10000 + 65536));
  // Half a byte, a byte for 64 values, four for 64 * 256; and the largest matrix widened.
  EXPECT_EQ(weights(", load_in_4bit: true", model), 4 * 10000 + 32768 + 1024 + 16 + 4 * 2048);
  EXPECT_EQ(weights(", load_in_4bit: true, bnb_4bit_use_double_quant: false", model),
            4 * 10000 + 32768 + 4096 + 4 * 2048);
  EXPECT_EQ(weights(", load_in_8bit: true", model), 4 * 10000 + 65536 + 4 * 2048);
  model.quantised_parameters = 65536;
  model.quantised_bytes = 34000;
  EXPECT_EQ(weights("", model), 4 * 10000 + 34000 + 4 * 2048);
  model.linear_parameters += 100;
  model.parameters += 100;
  EXPECT_EQ(weights(", load_in_8bit: true", model), 4 * 10100 + 34000 + 4 * 2048);
}

TEST(PlanTest, GenerationBoundsTraining) {
  const v1::JobSpec spec = Spec(R"(name: g
prompts: [{path: p.jsonl, weight: 0.5}]
teacher: {model: m, sampling: {n: 4, max_tokens: 10}, workers: {min: 1, max: 3}}
curate: {verify: {kind: number}, split: {validation: 0.1}}
student: {model_name_or_path: m, lora: {}, training: {gradient_accumulation_steps: 3}, workers: {max: 2}}
evaluate: [{prompts: e.jsonl, n: 2}]
)");
  const JobPlan plan = MakePlan(spec, {"generate", "curate", "train", "evaluate"},
                                {.prompts = {101}, .evaluations = {30}}, nullptr, nullptr);
  EXPECT_EQ(plan.generate->prompts, 50);
  EXPECT_EQ(plan.generate->samples, 200);
  EXPECT_EQ(plan.disk.traces_at_most, 200 * 10 * 8);
  EXPECT_FALSE(plan.train->rows_exact);
  EXPECT_EQ(plan.train->rows, 180);
  EXPECT_THAT(plan.train->shares, testing::ElementsAre(2, 1));
  EXPECT_EQ(plan.evaluations[0].samples, 30 * 2 * 3);
}

TEST(PlanTest, SaysWhenNothingWouldBeTrained) {
  v1::JobSpec spec = Spec(R"(name: d
dataset: [{path: t.jsonl}]
student: {model_name_or_path: m, lora: {target_modules: [w_q]}}
)");
  spec.mutable_dataset(0)->set_rows(100);
  const ModelFacts model = Model();
  EXPECT_THAT(MakePlan(spec, {"train"}, {}, nullptr, &model).notes,
              testing::ElementsAre(testing::HasSubstr("there would be nothing to train")));
}

TEST(ModelFactsTest, QuantisedFoldersHaveTheShapesOfWhatTheyStandFor) {
  const std::string golden = std::string(std::getenv("RETORT_SOURCE_DIR")) + "/tests/golden/";
  const std::pair<const char*, const char*> cases[] = {
      {"llama3_tied", "llama_nf4"}, {"qwen2_window", "qwen2_int8"}, {"phi3_window", "phi3_fp4"}};
  for (const auto& [plain_name, quantised_name] : cases) {
    const auto plain = ReadModelFacts(golden + "families/" + plain_name);
    const auto quantised = ReadModelFacts(golden + "quantized/" + quantised_name);
    ASSERT_TRUE(plain.ok() && quantised.ok()) << plain.status() << quantised.status();
    EXPECT_EQ(quantised->parameters, plain->parameters);
    EXPECT_EQ(quantised->linear_parameters, plain->linear_parameters);
    EXPECT_EQ(quantised->LoraParameters(3, {"all-linear"}), plain->LoraParameters(3, {"all-linear"}));
    EXPECT_EQ(plain->quantised_parameters, 0);
    EXPECT_GT(quantised->quantised_parameters, 0);
    EXPECT_LT(quantised->quantised_bytes, 2 * quantised->quantised_parameters);
  }
}

TEST(ModelFactsTest, LoraParametersOfAllLinears) {
  EXPECT_EQ(Model().LoraParameters(4, {"all-linear"}), 4 * (16 + 24));
  EXPECT_EQ(Model().LoraParameters(4, {"up_proj"}), 4 * 24);
  EXPECT_EQ(Model().LoraParameters(4, {"proj"}), 0);
  const int64_t embedding = 4 * (Model().vocab_size + Model().hidden_size);
  EXPECT_EQ(Model().LoraParameters(4, {"up_proj", "lm_head"}), 4 * 24 + embedding);
  EXPECT_EQ(Model().LoraParameters(4, {}, R"(lm_head|model\.embed_tokens)"), 2 * embedding);
}

}  // namespace
}  // namespace retort::cli
