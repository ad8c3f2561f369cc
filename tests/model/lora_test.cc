#include "model/lora.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/linalg_svd.h>
#include <ATen/ops/matmul.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "common/file.h"
#include "common/json.h"
#include "model/safetensors.h"
#include "tests/model/tokenizer_folder.h"

namespace retort {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

ModelConfig Tiny() {
  ModelConfig config;
  config.model_type = "llama";
  config.vocab_size = 11;
  config.hidden_size = 8;
  config.intermediate_size = 12;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 2;
  config.max_position_embeddings = 32;
  return config;
}

LoraConfig Rank3() {
  LoraConfig config;
  config.r = 3;
  config.lora_alpha = 7.0;
  config.target_modules = {"all-linear"};
  return config;
}

std::string GoldenFolder() {
  const char* root = std::getenv("RETORT_SOURCE_DIR");
  return std::string(root == nullptr ? "." : root) + "/tests/model/data/peft_adapter";
}

at::Tensor Delta(const LoraAdapter& adapter, const std::string& module) {
  const LoraPair& pair = adapter.modules.at(module);
  return at::matmul(pair.b, pair.a).mul(ScalingOf(adapter.config, module));
}

TEST(LoraTest, ListsLinearModulesInTheModelsOrder) {
  const auto modules = LinearModules(Tiny());
  ASSERT_EQ(modules.size(), 14u);
  EXPECT_EQ(modules[1].name, "model.layers.0.self_attn.k_proj");
  EXPECT_EQ(modules[1].in_features, 8);
  EXPECT_EQ(modules[1].out_features, 4);
  EXPECT_EQ(modules[13].name, "model.layers.1.mlp.down_proj");
  EXPECT_EQ(modules[13].in_features, 12);
}

// The names that the config comes to.
std::vector<std::string> Resolved(LoraConfig config, const ModelConfig& model = Tiny()) {
  const absl::Status status = ResolveTargets(model, config);
  EXPECT_TRUE(status.ok()) << status;
  std::vector<std::string> names = config.target_modules;
  names.insert(names.end(), config.target_parameters.begin(), config.target_parameters.end());
  return names;
}

TEST(LoraTest, ResolvesTargets) {
  EXPECT_THAT(Resolved({.target_modules = {"all-linear"}}),
              ElementsAre("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"));
  EXPECT_THAT(Resolved({.target_modules = {"v_proj", "mlp.up_proj", "q_proj", "v_proj"}}),
              ElementsAre("q_proj", "up_proj", "v_proj"));
  for (const char* bad : {"norm", "proj", "", "q_proj|v_proj", "model.layers.2.mlp.up_proj"}) {
    LoraConfig config{.target_modules = {"q_proj", bad}};
    const auto status = ResolveTargets(Tiny(), config);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_THAT(std::string(status.message()), HasSubstr("self_attn.q_proj"));
    config = {.target_modules = {"q_proj", bad}};
    EXPECT_TRUE(ResolveTargets(Tiny(), config, /*strict=*/false).ok()) << bad;
  }
  LoraConfig none;
  EXPECT_FALSE(ResolveTargets(Tiny(), none).ok());
}

TEST(LoraTest, ChoosesModulesAsPeft) {
  EXPECT_THAT(Resolved({.target_pattern = R"(.*\.1\.self_attn\.[qk]_proj)"}),
              ElementsAre("model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.q_proj"));
  EXPECT_THAT(Resolved({.target_pattern = R"(^(?!.*mlp).*[ov]_proj$)"}), ElementsAre("o_proj", "v_proj"));
  EXPECT_THAT(Resolved({.target_modules = {"q_proj", "up_proj"}, .layers_to_transform = {1}}),
              ElementsAre("model.layers.1.mlp.up_proj", "model.layers.1.self_attn.q_proj"));
  EXPECT_THAT(Resolved({.target_modules = {"q_proj"}, .layers_to_transform = {0}, .layers_pattern = {"layers"}}),
              ElementsAre("model.layers.0.self_attn.q_proj"));
  LoraConfig nowhere{.target_modules = {"q_proj"}, .layers_to_transform = {0}, .layers_pattern = {"h"}};
  EXPECT_FALSE(ResolveTargets(Tiny(), nowhere).ok());
  EXPECT_THAT(Resolved({.target_modules = {"all-linear"}, .exclude_modules = {"mlp.down_proj", "o_proj"}}),
              ElementsAre("gate_proj", "k_proj", "q_proj", "up_proj", "v_proj"));
  EXPECT_THAT(Resolved({.target_modules = {"q_proj"}, .exclude_pattern = R"(.*\.0\..*)"}),
              ElementsAre("model.layers.1.self_attn.q_proj"));
  EXPECT_THAT(Resolved({.target_modules = {"q_proj", "o_proj"}, .modules_to_save = {"o_proj"}}), ElementsAre("q_proj"));
  LoraConfig broken{.target_pattern = "(q_proj"};
  EXPECT_THAT(std::string(ResolveTargets(Tiny(), broken).message()), HasSubstr("regular expression"));
}

TEST(LoraTest, RanksAndScalingsByPattern) {
  const LoraConfig config{.r = 4,
                          .lora_alpha = 8,
                          .rank_pattern = {{"down_proj", 2}, {R"(self_attn\.q_proj)", 6}, {".*_proj", 9}},
                          .alpha_pattern = {{"layers.1.mlp.down_proj", 5}}};
  EXPECT_EQ(RankOf(config, "model.layers.0.mlp.down_proj"), 2);
  EXPECT_EQ(RankOf(config, "model.layers.0.self_attn.q_proj"), 6);
  EXPECT_EQ(RankOf(config, "model.layers.0.self_attn.k_proj"), 9);
  EXPECT_EQ(ScalingOf(config, "model.layers.0.mlp.down_proj"), 4.0);
  EXPECT_EQ(ScalingOf(config, "model.layers.1.mlp.down_proj"), 2.5);
  LoraConfig stabilised = config;
  stabilised.use_rslora = true;
  EXPECT_DOUBLE_EQ(ScalingOf(stabilised, "model.layers.1.mlp.down_proj"), 5.0 / std::sqrt(2.0));
}

ModelConfig TinyExperts() {
  ModelConfig config = Tiny();
  config.model_type = "deepseek_v3";
  config.moe = MoeConfig{.num_experts = 4,
                         .experts_per_token = 2,
                         .intermediate_size = 6,
                         .shared_intermediate_size = 6,
                         .first_dense_layers = 1};
  return config;
}

TEST(LoraTest, NamesOfDeepSeeksExpertsMeanTheirStackedParameters) {
  EXPECT_THAT(Resolved({.target_modules = {"all-linear"}}, TinyExperts()),
              ElementsAre("k_proj", "o_proj", "q_proj", "v_proj", "down_proj", "gate.weight", "gate_up_proj"));
  LoraConfig config{.r = 3, .lora_alpha = 5, .target_modules = {"q_proj", "gate_proj", "up_proj"}};
  ASSERT_TRUE(ResolveTargets(TinyExperts(), config).ok());
  EXPECT_EQ(RankOf(config, "model.layers.1.mlp.experts.gate_up_proj"), 6);
  EXPECT_EQ(ScalingOf(config, "model.layers.1.mlp.experts.gate_up_proj"), 5.0 / 3.0);
  LoraConfig half{.target_modules = {"q_proj", "gate_proj"}};
  EXPECT_THAT(std::string(ResolveTargets(TinyExperts(), half).message()), HasSubstr("up_proj"));
  LoraConfig dora{.target_modules = {"down_proj"}, .use_dora = true};
  EXPECT_THAT(std::string(ResolveTargets(TinyExperts(), dora).message()), HasSubstr("use_dora"));
}

TEST(LoraTest, WhatIsTrainedWhole) {
  ModelConfig model = Tiny();
  model.qkv_bias = true;
  const auto names = [&](LoraConfig config) {
    EXPECT_TRUE(ResolveTargets(model, config).ok());
    std::vector<std::string> all;
    for (const auto& [name, shape] : FullTensors(model, config)) all.push_back(name);
    return all;
  };
  EXPECT_THAT(names({.target_modules = {"q_proj"}, .bias = LoraBias::kLoraOnly}),
              ElementsAre("model.layers.0.self_attn.q_proj.bias", "model.layers.1.self_attn.q_proj.bias"));
  EXPECT_EQ(names({.target_modules = {"q_proj"}, .bias = LoraBias::kAll}).size(), 6u);
  EXPECT_THAT(names({.target_modules = {"q_proj"}, .modules_to_save = {"lm_head", "embed_tokens", "model.norm"}}),
              ElementsAre("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"));
  EXPECT_THAT(names({.target_modules = {"q_proj"}, .modules_to_save = {"0.self_attn.v_proj"}}),
              ElementsAre("model.layers.0.self_attn.v_proj.weight", "model.layers.0.self_attn.v_proj.bias"));
  model.tie_word_embeddings = true;
  EXPECT_THAT(names({.target_modules = {"q_proj"}, .modules_to_save = {"lm_head"}}), ElementsAre("lm_head.weight"));
  EXPECT_THAT(names({.target_modules = {"q_proj"}, .modules_to_save = {"lm_head"}, .ensure_weight_tying = true}),
              ElementsAre("model.embed_tokens.weight"));
  LoraConfig unknown{.target_modules = {"q_proj"}, .modules_to_save = {"classifier"}};
  EXPECT_EQ(ResolveTargets(model, unknown).code(), absl::StatusCode::kInvalidArgument);
  LoraConfig experts{.target_modules = {"q_proj"}, .modules_to_save = {"mlp"}};
  EXPECT_EQ(ResolveTargets(TinyExperts(), experts).code(), absl::StatusCode::kUnimplemented);
}

TEST(LoraTest, InitDependsOnSeedAndModuleAlone) {
  const auto all = InitLora(Tiny(), Rank3(), 42);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->modules.size(), 14u);
  LoraConfig few = Rank3();
  few.target_modules = {"q_proj"};
  const auto some = InitLora(Tiny(), few, 42);
  ASSERT_TRUE(some.ok()) << some.status();
  EXPECT_EQ(some->modules.size(), 2u);
  const std::string q0 = "model.layers.0.self_attn.q_proj";
  const std::string q1 = "model.layers.1.self_attn.q_proj";
  EXPECT_TRUE(at::equal(some->modules.at(q0).a, all->modules.at(q0).a));
  EXPECT_FALSE(at::equal(some->modules.at(q0).a, some->modules.at(q1).a));
  EXPECT_FALSE(at::equal(InitLora(Tiny(), few, 43)->modules.at(q0).a, some->modules.at(q0).a));
  for (const auto& [name, pair] : all->modules) {
    EXPECT_EQ(pair.b.abs().max().item<float>(), 0.0F);
    const float bound = 1.0F / std::sqrt(static_cast<float>(pair.a.size(1)));
    EXPECT_LE(pair.a.abs().max().item<float>(), bound);
    EXPECT_GT(pair.a.max().item<float>(), 0.3F * bound) << name;
    EXPECT_LT(pair.a.min().item<float>(), -0.3F * bound) << name;
  }
  // Adapters made by one version must be made again by the next.
  EXPECT_FLOAT_EQ(all->modules.at(q0).a[0][0].item<float>(), 0.10996897F);
  LoraConfig zero = Rank3();
  zero.r = 0;
  EXPECT_EQ(InitLora(Tiny(), zero, 1).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(LoraTest, OtherBeginnings) {
  const ModelWeights weights = RandomWeights(Tiny(), at::kFloat, at::kCPU, 5);
  const std::string q0 = "model.layers.0.self_attn.q_proj";
  LoraConfig config = Rank3();
  config.init_lora_weights = "gaussian";
  const at::Tensor normal = InitLora(Tiny(), config, 42)->modules.at("model.layers.0.mlp.down_proj").a;
  EXPECT_NEAR(normal.std().item<double>(), 1.0 / 3.0, 0.1);
  config.init_lora_weights = "false";
  EXPECT_GT(InitLora(Tiny(), config, 42)->modules.at(q0).b.abs().max().item<float>(), 0.1F);
  for (const char* init : {"pissa", "pissa_niter_16"}) {
    config.init_lora_weights = init;
    EXPECT_FALSE(InitLora(Tiny(), config, 42).ok()) << "needs the weights";
    const auto adapter = InitLora(Tiny(), config, 42, &weights);
    ASSERT_TRUE(adapter.ok()) << adapter.status();
    const at::Tensor& weight = weights.layers[0][kQ].weight;
    const auto [u, s, vh] = at::linalg_svd(weight, false);
    const at::Tensor principal = at::matmul(u.narrow(1, 0, 3) * s.narrow(0, 0, 3).unsqueeze(0), vh.narrow(0, 0, 3));
    EXPECT_LT((Delta(*adapter, q0) - principal).norm().item<double>(), 1e-2 * principal.norm().item<double>()) << init;
    // Nothing is trained yet: merged, it is the base.
    ModelWeights merged = weights;
    ASSERT_TRUE(MergeAdapter(*adapter, merged).ok());
    EXPECT_TRUE(at::allclose(merged.layers[0][kQ].weight, weight, 1e-5, 1e-6));
  }
  config.init_lora_weights = "olora";
  EXPECT_EQ(InitLora(Tiny(), config, 42, &weights).status().code(), absl::StatusCode::kUnimplemented);
  config = Rank3();
  config.use_dora = true;
  const auto dora = InitLora(Tiny(), config, 42, &weights);
  ASSERT_TRUE(dora.ok()) << dora.status();
  EXPECT_TRUE(at::allclose(dora->modules.at(q0).magnitude, weights.layers[0][kQ].weight.norm(2, {1}), 1e-5, 1e-6));
}

// A folder that PEFT has saved while its base was the residual: the principal part is found again.
TEST(LoraTest, APissaFolderMeansTheBaseWithoutItsPrincipalPart) {
  const ModelWeights weights = RandomWeights(Tiny(), at::kFloat, at::kCPU, 5);
  LoraConfig config = Rank3();
  config.init_lora_weights = "pissa";
  LoraAdapter adapter = InitLora(Tiny(), config, 42, &weights).value();
  ModelWeights expected = weights;
  for (auto& [name, pair] : adapter.modules) pair.b.mul_(1.5);
  ASSERT_TRUE(MergeAdapter(adapter, expected).ok());
  for (auto& [name, pair] : adapter.modules) pair = {.a = pair.a, .b = pair.b};
  adapter.config.init_lora_weights = "pissa";
  TemporaryFolder folder;
  ASSERT_TRUE(SaveAdapter(adapter, folder.path()).ok());
  const auto loaded = LoadAdapter(folder.path(), Tiny());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ModelWeights merged = weights;
  ASSERT_TRUE(MergeAdapter(*loaded, merged).ok());
  EXPECT_TRUE(at::allclose(merged.layers[1][kUp].weight, expected.layers[1][kUp].weight, 1e-4, 1e-5));
}

TEST(LoraTest, ReadsAndWritesWhatPeftWrites) {
  const auto adapter = LoadAdapter(GoldenFolder(), Tiny());
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  EXPECT_EQ(adapter->config.r, 3);
  EXPECT_EQ(adapter->config.lora_alpha, 7.0);
  EXPECT_EQ(adapter->config.lora_dropout, 0.1);
  EXPECT_EQ(adapter->config.base_model_name_or_path, "");
  EXPECT_THAT(adapter->config.target_modules, ElementsAre("down_proj", "q_proj"));
  const auto deltas = ReadJsonFile(GoldenFolder() + "/deltas.json");
  ASSERT_TRUE(deltas.ok());
  ASSERT_EQ(deltas->size(), adapter->modules.size());
  for (const auto& [name, values] : deltas->items()) {
    const at::Tensor delta = Delta(*adapter, name).flatten();
    for (size_t i = 0; i < values.size(); ++i) {
      EXPECT_NEAR(delta[static_cast<int64_t>(i)].item<float>(), values[i].get<float>(), 1e-5) << name;
    }
  }
  TemporaryFolder folder;
  ASSERT_TRUE(SaveAdapter(*adapter, folder.path()).ok());
  EXPECT_EQ(*ReadFile(folder / "adapter_model.safetensors"), *ReadFile(GoldenFolder() + "/adapter_model.safetensors"));
  const auto written = ReadJsonFile(folder / "adapter_config.json");
  ASSERT_TRUE(written.ok());
  auto golden = ReadJsonFile(GoldenFolder() + "/adapter_config.json");
  std::sort((*golden)["target_modules"].begin(), (*golden)["target_modules"].end());
  for (const auto& [key, value] : written->items()) EXPECT_EQ((*golden)[key], value) << key;
}

TEST(LoraTest, TheSameAdapterGivesTheSameBytes) {
  LoraAdapter adapter = InitLora(Tiny(), Rank3(), 42).value();
  adapter.config.base_model_name_or_path = "some/base";
  TemporaryFolder first, second;
  ASSERT_TRUE(SaveAdapter(adapter, first.path()).ok());
  const auto loaded = LoadAdapter(first.path(), Tiny());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.base_model_name_or_path, "some/base");
  ASSERT_TRUE(SaveAdapter(*loaded, second.path()).ok());
  for (const char* name : {"adapter_config.json", "adapter_model.safetensors"}) {
    EXPECT_EQ(*ReadFile(first / name), *ReadFile(second / name));
  }
}

// The tensors of the golden adapter in a folder whose config is the golden one with changes.
class LoadAdapterTest : public testing::Test {
 protected:
  absl::StatusOr<LoraAdapter> Load(const nlohmann::json& changes) {
    nlohmann::json config = ReadJsonFile(GoldenFolder() + "/adapter_config.json").value();
    config.update(changes);
    folder_.Write("adapter_config.json", config.dump());
    if (!std::filesystem::exists(folder_ / "adapter_model.safetensors")) {
      std::filesystem::copy_file(GoldenFolder() + "/adapter_model.safetensors", folder_ / "adapter_model.safetensors");
    }
    return LoadAdapter(folder_.path(), Tiny());
  }
  TemporaryFolder folder_;
};

TEST_F(LoadAdapterTest, TheTensorsDecideWhichModulesThereAre) {
  for (const nlohmann::json& targets :
       {nlohmann::json("all-linear"), nlohmann::json(".*(q|down|up)_proj"), nlohmann::json()}) {
    const auto adapter = Load({{"target_modules", targets}});
    ASSERT_TRUE(adapter.ok()) << adapter.status();
    EXPECT_THAT(adapter->config.target_modules, ElementsAre("down_proj", "q_proj"));
  }
  EXPECT_THAT(std::string(Load({{"target_modules", {"q_proj"}}}).status().message()), HasSubstr("does not name"));
  EXPECT_THAT(std::string(Load({{"target_modules", {"q_proj", "down_proj", "k_proj"}}}).status().message()),
              HasSubstr("self_attn.k_proj"));
  EXPECT_TRUE(Load({{"target_modules", {"q_proj", "down_proj", "qkv_proj"}}}).ok()) << "as for PEFT, names of others";
}

TEST_F(LoadAdapterTest, PartOfTheLayersKeepsWholeNames) {
  const LoraAdapter whole = LoadAdapter(GoldenFolder(), Tiny()).value();
  LoraAdapter part = whole;
  part.modules.erase("model.layers.1.mlp.down_proj");
  ASSERT_TRUE(SaveAdapter(part, folder_.path()).ok());
  const auto loaded = LoadAdapter(folder_.path(), Tiny());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_THAT(loaded->config.target_modules,
              ElementsAre("model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj",
                          "model.layers.1.self_attn.q_proj"));
}

TEST_F(LoadAdapterTest, RankStabilisedScaling) {
  const auto adapter = Load({{"use_rslora", true}});
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  EXPECT_NEAR(ScalingOf(adapter->config, "model.layers.0.self_attn.q_proj"), 7.0 / std::sqrt(3.0), 1e-12);
}

TEST_F(LoadAdapterTest, ReadsHalfPrecision) {
  std::map<std::string, at::Tensor> tensors;
  const SafetensorsFile file = SafetensorsFile::Open(GoldenFolder() + "/adapter_model.safetensors").value();
  for (const std::string& name : file.names()) {
    tensors[name] = file.Get(name)->to(name.find("lora_A") == std::string::npos ? at::kHalf : at::kBFloat16);
  }
  ASSERT_TRUE(WriteSafetensors(folder_ / "adapter_model.safetensors", tensors).ok());
  const auto adapter = Load(nlohmann::json::object());
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  const LoraPair& pair = adapter->modules.at("model.layers.0.self_attn.q_proj");
  EXPECT_EQ(pair.a.scalar_type(), at::kFloat);
  EXPECT_TRUE(
      at::equal(pair.b, tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"].to(at::kFloat)));
}

TEST_F(LoadAdapterTest, RefusesWhatChangesTheArithmetic) {
  const nlohmann::json unsupported[] = {
      {{"lora_bias", true}},
      {{"fan_in_fan_out", true}},
      {{"peft_type", "LOHA"}},
      {{"init_lora_weights", "pissa_niter_4"}},
      {{"init_lora_weights", "olora"}},
      {{"layer_replication", {{0, 1}}}},
      {{"trainable_token_indices", {1}}},
      {{"target_parameters", {"x"}}},
      {{"use_qalora", true}},
      {{"alora_invocation_tokens", {1}}},
      {{"loftq_config", {{"bits", 4}}}},
      {{"something_of_tomorrow", "on"}},
  };
  for (const auto& changes : unsupported) {
    const auto status = Load(changes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << changes << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(changes.begin().key()));
    EXPECT_THAT(std::string(status.message()), HasSubstr("adapter_config.json"));
  }
  EXPECT_TRUE(Load({{"something_of_tomorrow", false}}).ok());
}

TEST_F(LoadAdapterTest, RefusesWhatIsWrong) {
  const nlohmann::json wrong[] = {{{"r", 0}},
                                  {{"r", 4}},
                                  {{"r", "3"}},
                                  {{"r", 3.5}},
                                  {{"r", 1e300}},
                                  {{"lora_alpha", "x"}},
                                  {{"lora_dropout", 1.0}},
                                  {{"lora_dropout", -0.1}},
                                  {{"use_rslora", "yes"}},
                                  {{"use_dora", 1}},
                                  {{"use_dora", true}},
                                  {{"modules_to_save", {"lm_head"}}},
                                  {{"rank_pattern", {{"q_proj", 4}}}},
                                  {{"rank_pattern", {{"q_proj", 0}}}},
                                  {{"rank_pattern", {{"(", 3}}}},
                                  {{"alpha_pattern", {{"q_proj", "4"}}}},
                                  {{"layers_to_transform", {"0"}}},
                                  {{"target_modules", 7}},
                                  {{"target_modules", {7}}}};
  for (const auto& changes : wrong) {
    EXPECT_EQ(Load(changes).status().code(), absl::StatusCode::kInvalidArgument) << changes;
  }
}

TEST_F(LoadAdapterTest, RefusesTensorsThatDoNotFit) {
  const LoraAdapter good = LoadAdapter(GoldenFolder(), Tiny()).value();
  const std::string q = "base_model.model.model.layers.0.self_attn.q_proj";
  const at::Tensor a = good.modules.at("model.layers.0.self_attn.q_proj").a;
  const at::Tensor b = good.modules.at("model.layers.0.self_attn.q_proj").b;
  const std::map<std::string, at::Tensor> cases[] = {
      {},
      {{q + ".lora_A.weight", a}},
      {{q + ".lora_B.weight", b}},
      {{q + ".lora_A.weight", b}, {q + ".lora_B.weight", a}},
      {{q + ".lora_A.weight", a.to(at::kLong)}, {q + ".lora_B.weight", b}},
      {{q + ".lora_A.weight", a}, {q + ".lora_B.weight", b}, {q + ".lora_magnitude_vector", a}},
      {{q + ".lora_A.default.weight", a}},
      {{"model.layers.0.self_attn.q_proj.lora_A.weight", a}},
      {{"base_model.model.lm_head.lora_A.weight", a}},
      {{"base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight", a}},
  };
  for (const auto& tensors : cases) {
    ASSERT_TRUE(WriteSafetensors(folder_ / "adapter_model.safetensors", tensors).ok());
    const auto status = Load({{"target_modules", "all-linear"}}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status) || absl::IsUnimplemented(status)) << status;
  }
}

TEST_F(LoadAdapterTest, NamesTheMissingFile) {
  EXPECT_EQ(LoadAdapter(folder_.path(), Tiny()).status().code(), absl::StatusCode::kNotFound);
  folder_.Write("adapter_config.json", "{}");
  folder_.Write("adapter_model.bin", "");
  const auto status = LoadAdapter(folder_.path(), Tiny()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("pickle"));
}

TEST(LoraTest, MergesInFloatAndRoundsOnce) {
  const LoraAdapter adapter = LoadAdapter(GoldenFolder(), Tiny()).value();
  TemporaryFolder folder;
  const char* kept = std::getenv("RETORT_ROUND_TRIP_FOLDER");
  const std::string root = kept == nullptr ? folder.path() : kept;
  ASSERT_TRUE(SaveModelFolder(RandomWeights(Tiny(), at::kFloat, at::kCPU, 5), at::kFloat, "", root + "/base").ok());
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    const ModelWeights base = LoadWeights(root + "/base", dtype, at::kCPU).value();
    ModelWeights merged = LoadWeights(root + "/base", dtype, at::kCPU).value();
    ASSERT_TRUE(MergeAdapter(adapter, merged).ok());
    const at::Tensor expected =
        base.layers[1][kDown].weight.to(at::kFloat).add(Delta(adapter, "model.layers.1.mlp.down_proj")).to(dtype);
    EXPECT_TRUE(at::allclose(merged.layers[1][kDown].weight.to(at::kFloat), expected.to(at::kFloat), 1e-6, 1e-6));
    EXPECT_EQ(merged.layers[1][kDown].weight.scalar_type(), dtype);
    EXPECT_TRUE(at::equal(merged.layers[1][kUp].weight, base.layers[1][kUp].weight));
    if (kept != nullptr && dtype == at::kFloat) {
      ASSERT_TRUE(SaveModelFolder(merged, dtype, root + "/base", root + "/merged").ok());
      ASSERT_TRUE(MakeFolders(root + "/adapter").ok());
      ASSERT_TRUE(SaveAdapter(adapter, root + "/adapter").ok());
    }
  }
  ModelWeights other = RandomWeights(Tiny(), at::kFloat, at::kCPU, 5);
  other.layers.pop_back();
  EXPECT_EQ(MergeAdapter(adapter, other).code(), absl::StatusCode::kInvalidArgument);
}

TEST(LoraTest, MergesIntoWeightsAsTheFilesHaveThem) {
  ModelWeights stored = RandomWeights(Tiny(), at::kBFloat16, at::kCPU, 5);
  ModelWeights wide = stored;
  ConvertWeights(wide, [](const at::Tensor& weight) { return weight.to(at::kFloat); });
  LoraConfig config = Rank3();
  config.modules_to_save = {"embed_tokens"};
  LoraAdapter adapter = InitLora(Tiny(), config, 1, &wide).value();
  for (auto& [name, pair] : adapter.modules) pair.b.normal_(0.0, 0.1);
  adapter.full.at("model.embed_tokens.weight").add_(0.001);
  ModelWeights rounded = stored;
  ASSERT_TRUE(MergeAdapter(adapter, wide).ok());
  ASSERT_TRUE(MergeAdapter(adapter, stored, at::kFloat).ok());
  ASSERT_TRUE(MergeAdapter(adapter, rounded, at::kBFloat16).ok());
  const auto expected = NamedTensors(wide);
  const auto merged = NamedTensors(stored);
  const auto in_bf16 = NamedTensors(rounded);
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_TRUE(at::equal(merged[i].second.to(at::kFloat), expected[i].second)) << expected[i].first;
    EXPECT_TRUE(at::equal(in_bf16[i].second, expected[i].second.to(at::kBFloat16))) << expected[i].first;
  }
}

TEST(LoraTest, EmbeddingsThatPartUntieTheModel) {
  ModelConfig tied = Tiny();
  tied.tie_word_embeddings = true;
  const ModelWeights base = RandomWeights(tied, at::kFloat, at::kCPU, 5);
  for (const bool together : {false, true}) {
    LoraConfig config = Rank3();
    config.modules_to_save = {"embed_tokens"};
    config.ensure_weight_tying = together;
    LoraAdapter adapter = InitLora(tied, config, 1, &base).value();
    adapter.full.at("model.embed_tokens.weight").add_(1.0);
    ModelWeights merged = base;
    ASSERT_TRUE(MergeAdapter(adapter, merged).ok());
    EXPECT_EQ(merged.config.tie_word_embeddings, together);
    EXPECT_TRUE(at::allclose(merged.embed_tokens, base.embed_tokens + 1.0));
    EXPECT_TRUE(at::allclose(merged.lm_head, together ? merged.embed_tokens : base.lm_head));
  }
}

}  // namespace
}  // namespace retort
