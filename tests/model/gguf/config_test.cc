#include "model/gguf/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "model/gguf/mixture.h"
#include "model/gguf/rope.h"
#include "tests/model/gguf/file_builder.h"

namespace retort::gguf {
namespace {

using nlohmann::json;
using testing::HasSubstr;

TEST(ShortestDoubleTest, GivesTheDecimalThatWasMeant) {
  EXPECT_EQ(ShortestDouble(1e-5F), 1e-5);
  EXPECT_EQ(ShortestDouble(1e6F), 1e6);
  EXPECT_EQ(ShortestDouble(0.707F), 0.707);
}

TEST(Llama3ScalingTest, IsFoundFromItsFactors) {
  const Llama3Scaling scalings[] = {{8, 1, 4, 8192}, {32, 1, 4, 8192}, {4, 1, 4, 512}, {6, 1, 3.5, 3000}};
  for (const Llama3Scaling& scaling : scalings) {
    const auto factors = Llama3Factors(scaling, 500000.0, 128);
    const auto found = FindLlama3Scaling(factors, 500000.0, 128, 0);
    ASSERT_TRUE(found) << scaling.factor;
    EXPECT_FLOAT_EQ(found->factor, scaling.factor);
    EXPECT_EQ(found->original_context, scaling.original_context);
    EXPECT_NEAR(found->high_freq_factor, scaling.high_freq_factor, 1e-3);
  }
  EXPECT_FALSE(FindLlama3Scaling({1, 3, 2, 5}, 10000.0, 8, 0));
  EXPECT_FALSE(FindLlama3Scaling({1, 2}, 10000.0, 128, 0));
}

FileBuilder Llama() {
  FileBuilder file;
  file.String("general.architecture", "llama");
  file.Uint32("llama.block_count", 2).Uint32("llama.context_length", 64).Uint32("llama.embedding_length", 8);
  file.Uint32("llama.feed_forward_length", 16).Uint32("llama.attention.head_count", 2);
  file.Key("llama.attention.layer_norm_rms_epsilon", ValueType::kFloat32, Raw(1e-5F));
  return file.Tensor("token_embd.weight", {8, 4}, 0, 0).Data(128);
}

absl::StatusOr<json> ConfigOf(const FileBuilder& builder) {
  const std::string bytes = builder.Build();
  return ConfigFromGguf(**File::Parse(bytes, "x.gguf"));
}

TEST(ConfigFromGgufTest, FillsInWhatFilesLeaveOut) {
  const auto config = ConfigOf(Llama());
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ((*config)["num_key_value_heads"], 2);
  EXPECT_EQ((*config)["head_dim"], 4);
  EXPECT_EQ((*config)["rope_theta"], 10000.0);
  EXPECT_EQ((*config)["rms_norm_eps"], 1e-5);
  EXPECT_EQ((*config)["vocab_size"], 4);
  EXPECT_TRUE((*config)["tie_word_embeddings"].get<bool>());
  EXPECT_TRUE((*config)["bos_token_id"].is_null());
}

TEST(ConfigFromGgufTest, SaysWhatIsWrong) {
  const std::pair<FileBuilder, const char*> cases[] = {
      {FileBuilder(), "general.architecture"},
      {FileBuilder().String("general.architecture", "mamba"), "mamba"},
      {FileBuilder().String("general.architecture", "llama"), "token_embd.weight"},
      {Llama().String("llama.rope.scaling.type", "nosuch"), "nosuch"},
      {Llama().String("llama.attention.head_count_kv", "x"), "head_count_kv"},
      {Llama().Key("llama.attention.key_length", ValueType::kInt32, Raw<int32_t>(-1)), "key_length"},
      {Llama().Key("llama.rope.freq_base", ValueType::kFloat32, Raw<uint32_t>(0x7FC00000)), "freq_base"},
  };
  for (const auto& [builder, part] : cases) {
    const auto config = ConfigOf(builder);
    ASSERT_FALSE(config.ok()) << part;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(part));
    EXPECT_THAT(std::string(config.status().message()), HasSubstr("x.gguf: "));
  }
}

TEST(ConfigToMetadataTest, RefusesWhatAFileCannotSay) {
  const json sound = {{"model_type", "llama"},        {"vocab_size", 4},        {"hidden_size", 8},
                      {"intermediate_size", 16},      {"num_hidden_layers", 2}, {"num_attention_heads", 2},
                      {"max_position_embeddings", 64}};
  const Family& family = *FindFamilyOfModelType("llama");
  const auto convert = [&](const json& changes) {
    json config = sound;
    config.update(changes);
    Metadata metadata;
    std::vector<std::string> warnings;
    return ConfigToMetadata(config, "config.json", family, metadata, warnings).status();
  };
  EXPECT_EQ(convert(json::object()), absl::OkStatus());
  EXPECT_EQ(convert({{"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}}}).code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(convert({{"hidden_act", "gelu"}}).code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(convert({{"partial_rotary_factor", 0.5}}).code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(convert({{"num_attention_heads", 0}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(convert({{"num_hidden_layers", "two"}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(convert({{"rope_scaling", 7}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(convert({{"rope_scaling", {{"type", "longrope"}, {"long_factor", {1}}, {"short_factor", {1}}}}}).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(MixtureTest, ChoosesAsLlamaCppDoes) {
  Geometry geometry;
  geometry.layers = 32;
  geometry.heads = 32;
  geometry.kv_heads = 8;
  const auto choose = [&](const std::string& name, std::vector<int64_t> shape) {
    return ChooseType(FileType::kQ4_K_M, "llama", geometry, name, shape);
  };
  EXPECT_EQ(choose("blk.0.attn_norm.weight", {4096}), TensorType::kF32);
  EXPECT_EQ(choose("blk.0.attn_q.weight", {4096, 4096}), TensorType::kQ4_K);
  EXPECT_EQ(choose("blk.0.attn_v.weight", {1024, 4096}), TensorType::kQ6_K);
  EXPECT_EQ(choose("blk.4.attn_v.weight", {1024, 4096}), TensorType::kQ4_K);
  EXPECT_EQ(choose("blk.6.ffn_down.weight", {4096, 14336}), TensorType::kQ6_K);
  EXPECT_EQ(choose("output.weight", {128256, 4096}), TensorType::kQ6_K);
  EXPECT_EQ(choose("token_embd.weight", {128256, 4096}), TensorType::kQ4_K);
  EXPECT_EQ(choose("blk.4.attn_q.weight", {576, 576}), TensorType::kQ5_0);
  EXPECT_EQ(choose("blk.0.ffn_down.weight", {576, 1504}), TensorType::kQ8_0);
  EXPECT_EQ(choose("blk.4.ffn_up.weight", {1536, 100}), TensorType::kF16);
  geometry.tied = true;
  EXPECT_EQ(choose("token_embd.weight", {49152, 576}), TensorType::kQ8_0);
  EXPECT_EQ(ChooseType(FileType::kQ8_0, "llama", geometry, "blk.0.attn_q.weight", {8, 48}), TensorType::kF16);
  EXPECT_EQ(ChooseType(FileType::kBF16, "deepseek2", geometry, "blk.0.ffn_gate_inp.weight", {8, 64}), TensorType::kF32);
}

}  // namespace
}  // namespace retort::gguf
