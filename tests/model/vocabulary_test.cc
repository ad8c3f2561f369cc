// Models that grow with their tokenizer, and adapters that bring rows of embeddings along.
#include "model/vocabulary.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/training_model.h"
#include "model/trl_example.h"
#include "tests/model/tokenizer_folder.h"

namespace retort {
namespace {

using testing::HasSubstr;

ModelConfig Tiny(bool tied) {
  ModelConfig config;
  config.model_type = "llama";
  config.vocab_size = 12;
  config.hidden_size = 16;
  config.intermediate_size = 24;
  config.num_hidden_layers = 1;
  config.num_attention_heads = 2;
  config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.max_position_embeddings = 32;
  config.tie_word_embeddings = tied;
  FillDerived(config);
  return config;
}

ModelWeights Weights(bool tied) { return RandomWeights(Tiny(tied), at::kFloat, at::kCPU, 3); }

// A tokenizer of ten tokens, to which two are added and one was known: the first falls into the model's padding.
TokenAdditions Additions(int64_t first) {
  TokenAdditions additions;
  for (int32_t id = 0; id < 10; ++id) additions.ids_before.push_back(id);
  additions.tokens = {
      {"<a>", static_cast<int32_t>(first), false}, {"<b>", static_cast<int32_t>(first + 1), false}, {"c", 3, true}};
  additions.rows = first + 2;
  return additions;
}

TEST(VocabularyTest, NewRowsAreTheMeanOfTheRowsBefore) {
  for (const bool tied : {true, false}) {
    const ModelWeights before = Weights(tied);
    ModelWeights after = Weights(tied);
    ASSERT_TRUE(AddTokens(Additions(11), after).ok());
    EXPECT_EQ(after.config.vocab_size, 13);
    EXPECT_EQ(after.lm_head.is_same(after.embed_tokens), tied);
    for (const auto& [old, grown] :
         {std::pair(before.embed_tokens, after.embed_tokens), std::pair(before.lm_head, after.lm_head)}) {
      ASSERT_EQ(grown.size(0), 13);
      EXPECT_TRUE(grown.narrow(0, 0, 11).equal(old.narrow(0, 0, 11)));
      const at::Tensor mean = old.narrow(0, 0, 10).to(at::kDouble).mean(0).to(at::kFloat);
      EXPECT_TRUE(grown[11].equal(mean)) << "the model's padding";
      EXPECT_TRUE(grown[12].equal(mean));
    }
  }
}

TEST(VocabularyTest, EmbeddingsNeverShrink) {
  ModelWeights weights = Weights(false);
  ASSERT_TRUE(AddTokens(Additions(10), weights).ok());
  EXPECT_EQ(weights.config.vocab_size, 12);
  EXPECT_EQ(weights.embed_tokens.size(0), 12);
  ASSERT_TRUE(GrowVocabulary(5, weights).ok());
  EXPECT_EQ(weights.embed_tokens.size(0), 12);
  TokenAdditions known = Additions(20);
  known.tokens.erase(known.tokens.begin(), known.tokens.begin() + 2);
  ASSERT_TRUE(AddTokens(known, weights).ok());
  EXPECT_EQ(weights.embed_tokens.size(0), 12) << "nothing is new";
}

class GrownAdapterTest : public testing::Test {
 protected:
  // An adapter over a model with two more tokens, and that model merged.
  LoraAdapter Make(bool tied, ModelWeights* merged) {
    ModelWeights weights = Weights(tied);
    EXPECT_TRUE(AddTokens(Additions(12), weights).ok());
    LoraConfig config;
    config.r = 2;
    config.target_modules = {"q_proj"};
    config.init_lora_weights = "false";
    TrainEmbeddings(weights.config, config);
    LoraAdapter adapter = InitLora(weights.config, config, 1, &weights).value();
    for (auto& [name, tensor] : adapter.full) tensor.add_(at::arange(tensor.numel()).view_as(tensor) * 1e-3);
    *merged = weights;
    EXPECT_TRUE(MergeAdapter(adapter, *merged).ok());
    return adapter;
  }
};

TEST_F(GrownAdapterTest, LoadsOverTheModelThatHasNotGrown) {
  for (const bool tied : {true, false}) {
    ModelWeights merged;
    const LoraAdapter made = Make(tied, &merged);
    EXPECT_EQ(made.full.size(), tied ? 1u : 2u);
    TemporaryFolder folder;
    ASSERT_TRUE(SaveAdapter(made, folder.path()).ok());
    EXPECT_EQ(VocabularyUnder(folder.path(), Tiny(tied)).value(), 14);
    const auto adapter = LoadAdapter(folder.path(), Tiny(tied));
    ASSERT_TRUE(adapter.ok()) << adapter.status();
    ModelWeights weights = Weights(tied);
    ASSERT_TRUE(MergeAdapter(*adapter, weights).ok());
    EXPECT_EQ(weights.config.vocab_size, 14);
    EXPECT_EQ(weights.config.tie_word_embeddings, tied);
    EXPECT_TRUE(weights.embed_tokens.equal(merged.embed_tokens));
    EXPECT_TRUE(weights.lm_head.equal(merged.lm_head));
    // And is trained there: the new ids are in the vocabulary.
    auto model = TrainingModel::Create(Weights(tied), *adapter, {});
    ASSERT_TRUE(model.ok()) << model.status();
    const MicroBatch batch = {{1, 13, 12}, {kIgnoreLabel, 13, 12}, {0, 3}};
    at::Tensor gradient = at::zeros_like((*model)->flat_parameters());
    const auto loss = (*model)->ForwardBackward(batch, 1.0, 1, gradient);
    ASSERT_TRUE(loss.ok()) << loss.status();
    EXPECT_EQ(loss->trained_tokens, 2);
  }
}

// As PEFT saves the embeddings of a model that was resized and whose embeddings are not trained.
TEST_F(GrownAdapterTest, EmbeddingsThatOnlyComeAlongMakeTheModelGrowToo) {
  ModelWeights merged;
  LoraAdapter adapter = Make(false, &merged);
  adapter.replaced.swap(adapter.full);
  adapter.config.modules_to_save.clear();
  TemporaryFolder folder;
  ASSERT_TRUE(SaveAdapter(adapter, folder.path()).ok());
  const auto loaded = LoadAdapter(folder.path(), Tiny(false));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ModelWeights weights = Weights(false);
  ASSERT_TRUE(PrepareBase(*loaded, weights).ok());
  EXPECT_EQ(weights.config.vocab_size, 14);
  EXPECT_TRUE(weights.lm_head.equal(merged.lm_head));

  // One of the two alone cannot be.
  adapter.replaced.erase("lm_head.weight");
  ASSERT_TRUE(SaveAdapter(adapter, folder.path()).ok());
  const absl::Status half = LoadAdapter(folder.path(), Tiny(false)).status();
  EXPECT_THAT(std::string(half.message()), HasSubstr("and none of lm_head"));
}

TEST_F(GrownAdapterTest, FewerRowsThanTheModelHasAreAnError) {
  ModelWeights merged;
  const LoraAdapter adapter = Make(true, &merged);
  TemporaryFolder folder;
  ASSERT_TRUE(SaveAdapter(adapter, folder.path()).ok());
  ModelConfig larger = Tiny(true);
  larger.vocab_size = 15;
  const absl::Status status = LoadAdapter(folder.path(), larger).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("have 14 rows, the model's 15"));
}

// Of each token given those before it.
std::vector<double> LogProbabilities(ModelWeights weights, const LoraAdapter& adapter,
                                     const std::vector<int32_t>& ids) {
  auto model = TrainingModel::Create(std::move(weights), adapter, {});
  EXPECT_TRUE(model.ok()) << model.status();
  std::vector<double> values;
  for (size_t i = 1; i < ids.size(); ++i) {
    MicroBatch batch = {ids, std::vector<int32_t>(ids.size(), kIgnoreLabel), {0, static_cast<int64_t>(ids.size())}};
    batch.labels[i] = ids[i];
    values.push_back(-(*model)->Loss(batch).value().loss);
  }
  return values;
}

class ResizedAdapterTest : public testing::TestWithParam<std::string> {};

// tests/golden/resized, made by tests/golden/make_resized_golden.py.
TEST_P(ResizedAdapterTest, GivesWhatPeftGives) {
  const std::string folder = std::string(std::getenv("RETORT_SOURCE_DIR")) + "/tests/golden/resized/" + GetParam();
  const std::string base = folder.substr(0, folder.rfind('/')) + "/base";
  const nlohmann::json expected = ReadJsonFile(folder + "/expected.json").value();
  const auto ids = expected["ids"].get<std::vector<int32_t>>();
  const auto near = testing::Pointwise(testing::DoubleNear(2e-4), expected["logprobs"].get<std::vector<double>>());
  const ModelWeights weights = LoadWeights(base, at::kFloat, at::kCPU).value();
  const auto adapter = LoadAdapter(folder, weights.config);
  ASSERT_TRUE(adapter.ok()) << adapter.status();
  EXPECT_THAT(LogProbabilities(weights, *adapter, ids), near) << "trained on";
  ModelWeights merged = weights;
  ASSERT_TRUE(MergeAdapter(*adapter, merged).ok());
  const LoraAdapter nothing = InitLora(merged.config, {.r = 1, .target_modules = {"q_proj"}}, 1).value();
  EXPECT_THAT(LogProbabilities(merged, nothing, ids), near) << "merged";
}

INSTANTIATE_TEST_SUITE_P(Peft, ResizedAdapterTest,
                         testing::Values("tied/lora", "tied/head", "tied/embeddings", "tied/both", "untied/lora",
                                         "untied/head", "untied/embeddings", "untied/both", "tied/lora_head",
                                         "tied/lora_embeddings", "tied/lora_both", "tied/lora_both_bare",
                                         "tied/lora_both_resized", "tied/dora_both", "untied/lora_head",
                                         "untied/lora_embeddings", "untied/lora_both", "untied/lora_both_bare",
                                         "untied/lora_both_resized", "untied/dora_both"),
                         [](const auto& info) {
                           std::string name = info.param;
                           name[name.find('/')] = '_';
                           return name;
                         });

}  // namespace
}  // namespace retort
