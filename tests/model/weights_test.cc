#include "model/weights.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full_like.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "common/file.h"
#include "common/id.h"
#include "model/safetensors.h"

namespace retort {
namespace {

namespace fs = std::filesystem;

class WeightsTest : public testing::Test {
 protected:
  WeightsTest() : root_(fs::temp_directory_path() / ("weights_test." + RandomHex(8))) { fs::create_directories(root_); }
  ~WeightsTest() override { fs::remove_all(root_); }

  static ModelConfig Tiny() {
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
    config.eos_token_ids = {2, 3};
    return config;
  }
  std::string Path(const std::string& name) const { return (root_ / name).string(); }

  fs::path root_;
};

TEST_F(WeightsTest, RoundTripsThroughAFolder) {
  ModelConfig config = Tiny();
  config.qkv_bias = config.o_bias = true;
  config.rope = {.type = RopeType::kLlama3, .factor = 8.0, .original_max_position_embeddings = 16};
  const ModelWeights weights = RandomWeights(config, at::kFloat, at::kCPU, 7);
  ASSERT_TRUE(SaveModelFolder(weights, at::kFloat, "", Path("m")).ok());
  const auto loaded = LoadWeights(Path("m"), std::nullopt, at::kCPU);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const auto before = NamedTensors(weights);
  const auto after = NamedTensors(*loaded);
  ASSERT_EQ(before.size(), after.size());
  for (size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(before[i].first, after[i].first);
    EXPECT_TRUE(at::equal(before[i].second, after[i].second)) << before[i].first;
  }
  EXPECT_EQ(loaded->config.eos_token_ids, config.eos_token_ids);
  EXPECT_EQ(loaded->config.rope.type, RopeType::kLlama3);
  EXPECT_EQ(loaded->config.rope.factor, 8.0);
  EXPECT_FALSE(loaded->layers[0][kGate].bias.defined());
}

TEST_F(WeightsTest, TiedHeadSharesStorageAndDtypeConverts) {
  ModelConfig config = Tiny();
  config.tie_word_embeddings = true;
  ASSERT_TRUE(SaveModelFolder(RandomWeights(config, at::kFloat, at::kCPU, 7), at::kBFloat16, "", Path("m")).ok());
  const auto stored = LoadWeights(Path("m"), std::nullopt, at::kCPU);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->embed_tokens.scalar_type(), at::kBFloat16);
  EXPECT_EQ(stored->config.dtype, at::kBFloat16);
  EXPECT_EQ(stored->lm_head.data_ptr(), stored->embed_tokens.data_ptr());
  const auto converted = LoadWeights(Path("m"), at::kFloat, at::kCPU);
  ASSERT_TRUE(converted.ok()) << converted.status();
  EXPECT_EQ(converted->lm_head.scalar_type(), at::kFloat);
  EXPECT_EQ(converted->lm_head.data_ptr(), converted->embed_tokens.data_ptr());
}

TEST_F(WeightsTest, ReadsShards) {
  const ModelWeights weights = RandomWeights(Tiny(), at::kFloat, at::kCPU, 7);
  ASSERT_TRUE(SaveModelFolder(weights, at::kFloat, "", Path("m")).ok());
  std::map<std::string, at::Tensor> shards[2];
  std::string map;
  for (const auto& [name, tensor] : NamedTensors(weights)) {
    const int shard = name.find("layers.1") != std::string::npos ? 1 : 0;
    shards[shard][name] = tensor;
    map += (map.empty() ? "\"" : ",\"") + name + "\":\"part-" + std::to_string(shard) + ".safetensors\"";
  }
  fs::remove(Path("m/model.safetensors"));
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(WriteSafetensors(Path("m/part-" + std::to_string(i) + ".safetensors"), shards[i]).ok());
  }
  std::ofstream(Path("m/model.safetensors.index.json")) << "{\"weight_map\":{" << map << "}}";
  const auto loaded = LoadWeights(Path("m"), std::nullopt, at::kCPU);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_TRUE(at::equal(loaded->layers[1][kDown].weight, weights.layers[1][kDown].weight));
}

TEST_F(WeightsTest, NamesWhatIsMissingOrMisshapen) {
  const ModelWeights weights = RandomWeights(Tiny(), at::kFloat, at::kCPU, 7);
  ASSERT_TRUE(SaveModelFolder(weights, at::kFloat, "", Path("m")).ok());
  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, tensor] : NamedTensors(weights)) tensors[name] = tensor;
  const auto status_with = [&](const std::map<std::string, at::Tensor>& written) {
    EXPECT_TRUE(WriteSafetensors(Path("m/model.safetensors"), written).ok());
    return LoadWeights(Path("m"), std::nullopt, at::kCPU).status();
  };
  auto without = tensors;
  without.erase("model.layers.1.mlp.up_proj.weight");
  absl::Status status = status_with(without);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("model.layers.1.mlp.up_proj.weight"));

  auto turned = tensors;
  turned["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"];
  status = status_with(turned);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("[8, 12], config.json asks for [12, 8]"));

  auto quantised = tensors;
  quantised["model.norm.weight"] = tensors["model.norm.weight"].to(at::kChar);
  status = status_with(quantised);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);

  fs::remove(Path("m/model.safetensors"));
  status = LoadWeights(Path("m"), std::nullopt, at::kCPU).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
}

TEST_F(WeightsTest, ShardNamesCannotLeaveTheFolder) {
  ASSERT_TRUE(SaveModelFolder(RandomWeights(Tiny(), at::kFloat, at::kCPU, 7), at::kFloat, "", Path("m")).ok());
  fs::rename(Path("m/model.safetensors"), Path("outside.safetensors"));
  std::ofstream(Path("m/model.safetensors.index.json"))
      << R"({"weight_map":{"model.embed_tokens.weight":"../outside.safetensors"}})";
  EXPECT_EQ(LoadWeights(Path("m"), std::nullopt, at::kCPU).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(WeightsTest, SaveLeavesNothingBehindWhenItFails) {
  const ModelWeights weights = RandomWeights(Tiny(), at::kFloat, at::kCPU, 7);
  EXPECT_FALSE(SaveModelFolder(weights, at::kFloat, Path("no-such-source"), Path("m")).ok());
  EXPECT_TRUE(fs::is_empty(root_));
  ASSERT_TRUE(SaveModelFolder(weights, at::kFloat, "", Path("m")).ok());
  EXPECT_EQ(SaveModelFolder(weights, at::kFloat, "", Path("m")).code(), absl::StatusCode::kAlreadyExists);
}

TEST_F(WeightsTest, SaveRefusesWhatFloat16CannotHold) {
  ModelWeights weights = RandomWeights(Tiny(), at::kFloat, at::kCPU, 7);
  weights.final_norm = at::full_like(weights.final_norm, 1e6);
  const absl::Status status = SaveModelFolder(weights, at::kHalf, "", Path("m"));
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("model.norm.weight"));
  EXPECT_TRUE(fs::is_empty(root_));
  EXPECT_TRUE(SaveModelFolder(weights, at::kBFloat16, "", Path("m")).ok());
}

TEST_F(WeightsTest, RevisionFollowsContentsAndIsRemembered) {
  ModelConfig config = Tiny();
  config.vocab_size = 40'000;  // above the size from which hashes are remembered
  ASSERT_TRUE(SaveModelFolder(RandomWeights(config, at::kFloat, at::kCPU, 7), at::kFloat, "", Path("m")).ok());
  const auto revision = ModelRevision(Path("m"), Path("cache"));
  ASSERT_TRUE(revision.ok()) << revision.status();
  EXPECT_EQ(revision->size(), 32u);
  EXPECT_EQ(*ModelRevision(Path("m"), ""), *revision);
  EXPECT_EQ(*ModelRevision(Path("m"), Path("cache")), *revision);

  ASSERT_EQ(std::distance(fs::directory_iterator(Path("cache")), fs::directory_iterator()), 1);
  std::ofstream(fs::directory_iterator(Path("cache"))->path()) << "{}";
  EXPECT_EQ(*ModelRevision(Path("m"), Path("cache")), *revision);

  std::ofstream(Path("m/README.md")) << "not part of it";
  EXPECT_EQ(*ModelRevision(Path("m"), Path("cache")), *revision);
  std::ofstream(Path("m/chat_template.jinja")) << "{{ messages }}";
  EXPECT_NE(*ModelRevision(Path("m"), Path("cache")), *revision);
  EXPECT_EQ(ModelRevision(Path("nowhere"), "").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace retort
