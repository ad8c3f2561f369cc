// Adapters on the embedding and the output head.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/lora.h"
#include "model/safetensors.h"
#include "model/sft_example.h"
#include "model/training_model.h"
#include "model/weights.h"
#include "tests/model/tokenizer_folder.h"

namespace retort {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kEmbeddings = "model.embed_tokens";
constexpr const char* kHead = "lm_head";

ModelConfig Tiny(bool tied) {
  ModelConfig config;
  config.model_type = "llama";
  config.vocab_size = 300;
  config.hidden_size = 8;
  config.intermediate_size = 12;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 2;
  config.max_position_embeddings = 32;
  config.tie_word_embeddings = tied;
  FillDerived(config);
  return config;
}

ModelWeights Weights(bool tied, c10::ScalarType dtype = at::kFloat) {
  return RandomWeights(Tiny(tied), dtype, at::kCPU, 5);
}

// An adapter that changes something.
LoraAdapter Adapter(const ModelWeights& weights, LoraConfig config) {
  config.init_lora_weights = "false";
  return InitLora(weights.config, config, 1, &weights).value();
}

std::vector<std::string> Resolved(LoraConfig config, bool tied = true) {
  EXPECT_TRUE(ResolveTargets(Tiny(tied), config).ok());
  return config.target_modules;
}

absl::Status Refusal(LoraConfig config, bool tied = true) { return ResolveTargets(Tiny(tied), config); }

TEST(LoraEmbeddingsTest, AreChosenByNameAlone) {
  EXPECT_THAT(Resolved({.target_modules = {"q_proj", "lm_head", "embed_tokens"}}),
              ElementsAre("embed_tokens", "lm_head", "q_proj"));
  EXPECT_THAT(Resolved({.target_pattern = R"(lm_head|.*\.1\.self_attn\.q_proj)"}),
              ElementsAre("lm_head", "model.layers.1.self_attn.q_proj"));
  for (const std::string& name : Resolved({.target_modules = {"all-linear"}})) EXPECT_THAT(name, HasSubstr("_proj"));
  EXPECT_THAT(Resolved({.target_modules = {"q_proj", "lm_head"}, .exclude_modules = {"lm_head"}}),
              ElementsAre("q_proj"));
  EXPECT_THAT(Resolved({.target_modules = {"q_proj", "lm_head"}, .modules_to_save = {"lm_head"}}),
              ElementsAre("q_proj"));
  // With layers_to_transform whole names are taken, ends of names only in these layers.
  EXPECT_THAT(Resolved({.target_modules = {"q_proj", "lm_head", "embed_tokens"}, .layers_to_transform = {0}}),
              ElementsAre("lm_head", "model.layers.0.self_attn.q_proj"));
  EXPECT_THAT(Resolved({.target_modules = {"lm_head"}, .ensure_weight_tying = true}),
              ElementsAre("embed_tokens", "lm_head"));
  EXPECT_THAT(Resolved({.target_modules = {"lm_head"}, .ensure_weight_tying = true}, /*tied=*/false),
              ElementsAre("lm_head"));
}

TEST(LoraEmbeddingsTest, SaysWhatIsNotSupported) {
  const LoraConfig pissa{.target_modules = {"lm_head"}, .init_lora_weights = "pissa"};
  EXPECT_THAT(std::string(Refusal(pissa).message()), HasSubstr("tied lm_head"));
  EXPECT_TRUE(Refusal(pissa, /*tied=*/false).ok());
  EXPECT_THAT(std::string(Refusal({.target_modules = {"embed_tokens"}, .init_lora_weights = "pissa"}, false).message()),
              HasSubstr("embed_tokens"));
  EXPECT_THAT(
      std::string(
          Refusal({.target_modules = {"lm_head"}, .modules_to_save = {"embed_tokens"}, .ensure_weight_tying = true})
              .message()),
      HasSubstr("ensure_weight_tying"));
  EXPECT_THAT(std::string(Refusal({.target_modules = {"q_proj", "head"}}).message()), HasSubstr("lm_head"));

  const ModelWeights weights = Weights(true);
  const auto refused = [&](LoraConfig config, double dropout) {
    const LoraAdapter adapter = Adapter(weights, std::move(config));
    return std::string(TrainingModel::Create(weights, adapter, {.lora_dropout = dropout}).status().message());
  };
  EXPECT_THAT(refused({.target_modules = {kHead}, .use_dora = true}, 0.5), HasSubstr("lora_dropout"));
  EXPECT_THAT(refused({.target_modules = {kHead}, .use_dora = true}, 0.0), "");
  EXPECT_THAT(refused({.target_modules = {kHead}, .ensure_weight_tying = true}, 0.0), HasSubstr("ensure_weight_tying"));
}

TEST(LoraEmbeddingsTest, BeginAsPeft) {
  const ModelWeights weights = Weights(false);
  LoraConfig config{.r = 4, .target_modules = {kHead, kEmbeddings}, .use_dora = true};
  const LoraAdapter adapter = InitLora(weights.config, config, 1, &weights).value();
  const LoraPair& embedding = adapter.modules.at(kEmbeddings);
  EXPECT_TRUE(at::equal(embedding.a, at::zeros({4, 300})));
  EXPECT_EQ(embedding.b.sizes(), at::IntArrayRef({8, 4}));
  EXPECT_NEAR(embedding.b.std().item<double>(), 1.0, 0.4);
  EXPECT_TRUE(at::allclose(embedding.magnitude, weights.embed_tokens.norm(2, {0})));
  const LoraPair& head = adapter.modules.at(kHead);
  EXPECT_EQ(head.a.sizes(), at::IntArrayRef({4, 8}));
  EXPECT_TRUE(at::equal(head.b, at::zeros({300, 4})));
  EXPECT_TRUE(at::allclose(head.magnitude, weights.lm_head.norm(2, {1})));
  config.init_lora_weights = "false";
  const at::Tensor random = InitLora(weights.config, config, 1, &weights)->modules.at(kEmbeddings).a;
  EXPECT_NEAR(random.std().item<double>(), 1.0, 0.1);
}

// The base's one weight stays what it is in the other use.
TEST(LoraEmbeddingsTest, MergedIntoATiedModelChangeTheirUseAlone) {
  const ModelWeights base = Weights(true, at::kBFloat16);
  for (const char* module : {kEmbeddings, kHead}) {
    const bool embedding = module == std::string(kEmbeddings);
    const LoraAdapter adapter = Adapter(base, {.r = 2, .lora_alpha = 6, .target_modules = {module}});
    const LoraPair& pair = adapter.modules.at(module);
    const at::Tensor delta = at::mm(pair.b, pair.a) * 3.0;
    ModelWeights merged = base;
    ASSERT_TRUE(MergeAdapter(adapter, merged).ok());
    EXPECT_FALSE(merged.config.tie_word_embeddings);
    const at::Tensor& changed = embedding ? merged.embed_tokens : merged.lm_head;
    EXPECT_TRUE(at::equal(embedding ? merged.lm_head : merged.embed_tokens, base.lm_head)) << module;
    EXPECT_TRUE(
        at::allclose(changed.to(at::kFloat), base.lm_head.to(at::kFloat) + (embedding ? delta.t() : delta), 1e-2, 1e-3))
        << module;
    EXPECT_EQ(changed.scalar_type(), at::kBFloat16);
    EXPECT_TRUE(changed.is_contiguous());
  }
}

TEST(LoraEmbeddingsTest, TheBasesMatricesComeBackUnderPeftsNames) {
  const ModelWeights base = Weights(true);
  LoraAdapter adapter = Adapter(base, {.r = 2, .target_modules = {kHead, "q_proj"}});
  adapter.replaced["lm_head.weight"] = at::randn({310, 8});
  TemporaryFolder folder;
  ASSERT_TRUE(SaveAdapter(adapter, folder.path()).ok());
  const auto names = SafetensorsFile::Open(folder / "adapter_model.safetensors")->names();
  EXPECT_THAT(names, testing::Contains("base_model.model.lm_head.base_layer.weight"));
  EXPECT_THAT(std::string(LoadAdapter(folder.path(), Tiny(true)).status().message()), HasSubstr("lora_B"))
      << "of as many rows";

  adapter.modules.at(kHead).b = at::randn({310, 2});
  ASSERT_TRUE(SaveAdapter(adapter, folder.path()).ok());
  const auto loaded = LoadAdapter(folder.path(), Tiny(true));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ModelWeights merged = base;
  ASSERT_TRUE(MergeAdapter(*loaded, merged).ok());
  EXPECT_EQ(merged.config.vocab_size, 310);
  EXPECT_TRUE(at::equal(merged.embed_tokens, adapter.replaced.at("lm_head.weight")));
  EXPECT_FALSE(at::equal(merged.lm_head, merged.embed_tokens));
}

class TrainingTest : public testing::Test {
 protected:
  // The loss and its gradient with this dropout.
  std::pair<double, at::Tensor> Run(const char* module, double dropout, c10::ScalarType dtype = at::kFloat) {
    const ModelWeights weights = Weights(true, dtype);
    const LoraAdapter adapter = Adapter(weights, {.r = 2, .lora_alpha = 1, .target_modules = {module}});
    const MicroBatch batch{{1, 20, 3, 299, 5}, {kIgnoreLabel, 20, 3, 299, 5}, {0, 5}};
    auto model = TrainingModel::Create(weights, adapter, {.compute_dtype = dtype, .lora_dropout = dropout}).value();
    at::Tensor gradient = at::empty_like(model->flat_parameters());
    const auto sum = model->ForwardBackward(batch, 1.0, 7, gradient);
    EXPECT_TRUE(sum.ok()) << sum.status();
    EXPECT_TRUE(dropout > 0.0 || std::abs(model->Loss(batch)->loss - sum->loss) < 1e-9);
    return {sum->loss, gradient};
  }
};

TEST_F(TrainingTest, DropoutFallsOnTheHeadAndNotOnEmbeddings) {
  EXPECT_EQ(Run(kEmbeddings, 0.5).first, Run(kEmbeddings, 0.0).first);
  EXPECT_NE(Run(kHead, 0.5).first, Run(kHead, 0.0).first);
  EXPECT_EQ(Run(kHead, 0.5).first, Run(kHead, 0.5).first);
}

TEST_F(TrainingTest, InBfloat16TheGradientIsThatOfFloat) {
  for (const char* module : {kEmbeddings, kHead}) {
    const auto [wide_loss, wide] = Run(module, 0.0);
    const auto [loss, gradient] = Run(module, 0.0, at::kBFloat16);
    EXPECT_NEAR(loss, wide_loss, 0.01 * wide_loss);
    EXPECT_LT((gradient - wide).norm().item<double>(), 0.05 * wide.norm().item<double>()) << module;
  }
}

}  // namespace
}  // namespace retort
