// Files from outside that lie: each is refused with a Status that names the file.
#include <ATen/core/Tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include "model/config.h"
#include "model/safetensors.h"
#include "tests/model/tokenizer_folder.h"

namespace retort {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::string LittleEndian(uint64_t value) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[static_cast<size_t>(i)] = static_cast<char>(value >> (8 * i));
  return bytes;
}

std::string File(const std::string& header, size_t data_bytes) {
  return LittleEndian(header.size()) + header + std::string(data_bytes, '\1');
}

// A file with one tensor of 4 floats, its entry as given.
std::string WithEntry(const std::string& entry, size_t data_bytes = 16) {
  return File("{\"t\":" + entry + "}", data_bytes);
}

TEST(HostileSafetensorsTest, EachIsRefused) {
  const std::string good = R"({"dtype":"F32","shape":[4],"data_offsets":[0,16]})";
  const std::pair<const char*, std::string> cases[] = {
      {"empty", ""},
      {"three bytes", "abc"},
      {"length alone", LittleEndian(0)},
      {"header of nothing", LittleEndian(0) + std::string(16, '\0')},
      {"length over the file", LittleEndian(1000) + "{}"},
      {"length of one more", LittleEndian(3) + "{}"},
      {"length over the limit", LittleEndian(uint64_t{1} << 40) + "{}" + std::string(100, ' ')},
      {"length of all ones", std::string(8, '\xff') + "{}" + std::string(100, ' ')},
      {"length that wraps", LittleEndian(UINT64_MAX - 7) + "{}" + std::string(100, ' ')},
      {"not JSON", File("{nope}", 0)},
      {"JSON cut off", File("{\"t\":", 16)},
      {"a list", File("[1,2,3]", 0)},
      {"a number", File("12345", 0)},
      {"white space first", File("  {}", 0)},
      {"invalid UTF-8", File("{\"\xff\":" + good + "}", 16)},
      {"deep nesting", File("{\"t\":" + std::string(100000, '[') + std::string(100000, ']') + "}", 16)},
      {"a long list", WithEntry(R"({"dtype":"F32","shape":[)" +
                                [] {
                                  std::string ones = "1";
                                  for (int i = 0; i < 1000000; ++i) ones += ",1";
                                  return ones;
                                }() +
                                R"(],"data_offsets":[0,16]})")},
      {"data that no tensor names", File("{}", 16)},
      {"entry that is no object", WithEntry("7")},
      {"entry that is null", WithEntry("null")},
      {"no dtype", WithEntry(R"({"shape":[4],"data_offsets":[0,16]})")},
      {"no shape", WithEntry(R"({"dtype":"F32","data_offsets":[0,16]})")},
      {"no offsets", WithEntry(R"({"dtype":"F32","shape":[4]})")},
      {"a key too many", WithEntry(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16],"x":1})")},
      {"unknown dtype", WithEntry(R"({"dtype":"F4","shape":[4],"data_offsets":[0,16]})")},
      {"dtype that is no string", WithEntry(R"({"dtype":32,"shape":[4],"data_offsets":[0,16]})")},
      {"negative size", WithEntry(R"({"dtype":"F32","shape":[-4],"data_offsets":[0,16]})")},
      {"fractional size", WithEntry(R"({"dtype":"F32","shape":[4.0],"data_offsets":[0,16]})")},
      {"shape that is no list", WithEntry(R"({"dtype":"F32","shape":4,"data_offsets":[0,16]})")},
      {"shape that overflows", WithEntry(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]})")},
      {"shape that overflows to 16",
       WithEntry(R"({"dtype":"F32","shape":[4611686018427387908],"data_offsets":[0,16]})")},
      {"size above 64 bits", WithEntry(R"({"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,16]})")},
      {"zero times overflow", WithEntry(R"({"dtype":"F32","shape":[18446744073709551615,0],"data_offsets":[0,0]})", 0)},
      {"shape larger than its bytes", WithEntry(R"({"dtype":"F32","shape":[5],"data_offsets":[0,16]})")},
      {"shape smaller than its bytes", WithEntry(R"({"dtype":"F32","shape":[3],"data_offsets":[0,16]})")},
      {"offsets over the file", WithEntry(R"({"dtype":"F32","shape":[4],"data_offsets":[16,32]})")},
      {"offsets turned round", WithEntry(R"({"dtype":"F32","shape":[4],"data_offsets":[16,0]})")},
      {"offsets of one", WithEntry(R"({"dtype":"F32","shape":[4],"data_offsets":[16]})")},
      {"offsets of three", WithEntry(R"({"dtype":"F32","shape":[4],"data_offsets":[0,16,16]})")},
      {"negative offset", WithEntry(R"({"dtype":"F32","shape":[4],"data_offsets":[-16,0]})")},
      {"huge offset",
       WithEntry(R"({"dtype":"F32","shape":[4],"data_offsets":[18446744073709551600,18446744073709551615]})")},
      {"offsets that are text", WithEntry(R"({"dtype":"F32","shape":[4],"data_offsets":["0","16"]})")},
      {"data cut off", WithEntry(good, 15)},
      {"data too long", WithEntry(good, 17)},
      {"overlap", File("{\"a\":" + good + ",\"b\":" + good + "}", 16)},
      {"partial overlap", File("{\"a\":" + good + R"(,"b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}})", 24)},
      {"gap", File("{\"a\":" + good + R"(,"b":{"dtype":"F32","shape":[4],"data_offsets":[20,36]}})", 36)},
      {"gap at the start", WithEntry(R"({"dtype":"F32","shape":[4],"data_offsets":[4,20]})", 20)},
      {"a name twice", File("{\"a\":" + good + ",\"a\":" + good + "}", 16)},
      {"dtype twice", WithEntry(R"({"dtype":"I8","dtype":"F32","shape":[4],"data_offsets":[0,16]})")},
      {"metadata that is no object", File("{\"__metadata__\":7}", 0)},
      {"metadata of numbers", File("{\"__metadata__\":{\"a\":7}}", 0)},
      {"metadata twice", File("{\"__metadata__\":{},\"__metadata__\":{}}", 0)},
  };
  TemporaryFolder folder;
  for (const auto& [name, contents] : cases) {
    folder.Write("x.safetensors", contents);
    const auto file = SafetensorsFile::Open(folder / "x.safetensors");
    ASSERT_FALSE(file.ok()) << name;
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << name << ": " << file.status();
    EXPECT_THAT(std::string(file.status().message()), HasSubstr("x.safetensors: ")) << name;
    EXPECT_LT(file.status().message().size(), 1000u) << name;
  }
  EXPECT_EQ(SafetensorsFile::Open(folder / "none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsFile::Open(folder.path()).status().code(), absl::StatusCode::kInvalidArgument);
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  EXPECT_LT(usage.ru_maxrss, 1 << 20) << "KiB";
}

TEST(HostileSafetensorsTest, OddButSoundFilesAreRead) {
  TemporaryFolder folder;
  // The header's length is odd, so no tensor is aligned; an empty tensor and a scalar stand between.
  const std::string header =
      R"({"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]},"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},)"
      R"("c":{"dtype":"BF16","shape":[0,7],"data_offsets":[9,9]},"__metadata__":{"k":"v"}} )";
  std::string contents = File(header, 1);
  const float values[] = {1.5F, -2.0F};
  contents.append(reinterpret_cast<const char*>(values), sizeof(values));
  folder.Write("x.safetensors", contents);
  auto file = SafetensorsFile::Open(folder / "x.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->names(), testing::ElementsAre("a", "b", "c"));
  EXPECT_EQ(file->metadata().at("k"), "v");
  const at::Tensor b = *file->Get("b");
  EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data_ptr()) % 4, 0u);
  EXPECT_EQ(b[1].item<float>(), -2.0F);
  EXPECT_EQ(file->Get("a")->dim(), 0);
  EXPECT_EQ(file->Get("c")->numel(), 0);
  EXPECT_EQ(file->Get("d").status().code(), absl::StatusCode::kNotFound);
}

TEST(HostileSafetensorsTest, TensorsOutliveTheirFile) {
  TemporaryFolder folder;
  folder.Write("x.safetensors", WithEntry(R"({"dtype":"I8","shape":[16],"data_offsets":[0,16]})"));
  at::Tensor tensor;
  {
    const auto file = SafetensorsFile::Open(folder / "x.safetensors");
    ASSERT_TRUE(file.ok());
    tensor = *file->Get("t");
  }
  std::filesystem::remove(folder / "x.safetensors");
  EXPECT_EQ(tensor.sum().item<int64_t>(), 16);
}

class HostileConfigTest : public testing::Test {
 protected:
  absl::StatusOr<ModelConfig> Load(const json& changes) {
    json config = {{"model_type", "llama"},
                   {"vocab_size", 100},
                   {"hidden_size", 64},
                   {"intermediate_size", 128},
                   {"num_hidden_layers", 2},
                   {"num_attention_heads", 4},
                   {"num_key_value_heads", 2},
                   {"rms_norm_eps", 1e-5},
                   {"max_position_embeddings", 512},
                   {"eos_token_id", 2},
                   {"torch_dtype", "bfloat16"},
                   {"hidden_act", "silu"},
                   {"architectures", {"LlamaForCausalLM"}}};
    config.update(changes);
    return LoadText(config.dump());
  }
  absl::StatusOr<ModelConfig> LoadText(const std::string& text) {
    folder_.Write("config.json", text);
    return LoadModelConfig(folder_.path());
  }
  TemporaryFolder folder_;
};

TEST_F(HostileConfigTest, WhatChangesTheArithmeticIsRefusedByItsKey) {
  const json cases[] = {
      {{"model_type", "gpt2"}},
      {{"model_type", "qwen2_moe"}},
      {{"architectures", {"LlamaForSequenceClassification"}}},
      {{"hidden_act", "gelu"}},
      {{"pretraining_tp", 2}},
      {{"rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}, {"partial_rotary_factor", 0.5}}}},
      {{"rope_interleaved", true}},
      {{"quantization_config", {{"quant_method", "gptq"}}}},
      {{"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}}},
      {{"rope_scaling", {{"rope_type", "ntk"}, {"factor", 2.0}}}},
      {{"torch_dtype", "float8_e4m3fn"}},
      {{"dtype", "int8"}},
  };
  for (const json& changes : cases) {
    const auto status = Load(changes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << changes << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("config.json: " + changes.begin().key())) << changes;
  }
}

TEST_F(HostileConfigTest, WrongValuesAreRefusedByTheirKey) {
  const json cases[] = {
      {{"vocab_size", nullptr}},
      {{"vocab_size", 0}},
      {{"vocab_size", -1}},
      {{"vocab_size", "100"}},
      {{"vocab_size", 1e3}},
      {{"vocab_size", int64_t{1} << 40}},
      {{"vocab_size", UINT64_MAX}},
      {{"hidden_size", 63}},
      {{"hidden_size", {64}}},
      {{"intermediate_size", false}},
      {{"num_hidden_layers", 1000000}},
      {{"num_attention_heads", 0}},
      {{"num_key_value_heads", 3}},
      {{"head_dim", 7}},
      {{"rms_norm_eps", 0.0}},
      {{"rms_norm_eps", "small"}},
      {{"rope_theta", -1.0}},
      {{"tie_word_embeddings", 1}},
      {{"attention_bias", "no"}},
      {{"max_position_embeddings", 0}},
      {{"eos_token_id", {2, "x"}}},
      {{"bos_token_id", 1.5}},
      {{"rope_scaling", "llama3"}},
      {{"rope_parameters", {{"rope_type", "longrope"}}}},
      {{"rope_parameters", {{"rope_type", "linear"}}}},
      {{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}}}},
      {{"torch_dtype", 16}},
  };
  for (const json& changes : cases) {
    const auto status = Load(changes).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << changes << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(changes.begin().key())) << changes;
    EXPECT_THAT(std::string(status.message()), HasSubstr("config.json")) << changes;
  }
}

TEST_F(HostileConfigTest, WhatIsNoConfigIsRefused) {
  for (const std::string& text :
       {std::string(), std::string("null"), std::string("[]"), std::string("{"), std::string("{}"),
        std::string(1000, '['), std::string(1 << 20, '['), std::string("{\"a\":\"\xff\"}"), std::string("{} {}"),
        std::string("{\"model_type\":7}"), std::string("\0\0\0", 3)}) {
    const auto status = LoadText(text).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status) || absl::IsUnimplemented(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("config.json"));
  }
  std::filesystem::remove(folder_ / "config.json");
  EXPECT_EQ(LoadModelConfig(folder_.path()).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(HostileConfigTest, TokenIdsOutsideTheVocabularyAreLeftOut) {
  const auto config = Load({{"eos_token_id", {100, 7, -1}}, {"bos_token_id", 1000}, {"pad_token_id", 100}});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->eos_token_ids, std::vector<int32_t>{7});
  EXPECT_FALSE(config->bos_token_id.has_value());
  EXPECT_FALSE(config->pad_token_id.has_value());
}

TEST_F(HostileConfigTest, BadGenerationConfigIsRefused) {
  for (const char* text : {"[]", "{", R"({"eos_token_id": 1.5})", R"({"eos_token_id": "x"})"}) {
    folder_.Write("generation_config.json", text);
    const auto status = Load(json::object()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("generation_config.json"));
  }
}

TEST_F(HostileConfigTest, ReadsBothSpellings) {
  const auto old_style = Load({{"rope_theta", 5e5},
                               {"pad_token_id", -1},
                               {"rope_scaling",
                                {{"rope_type", "llama3"},
                                 {"factor", 8.0},
                                 {"low_freq_factor", 1.0},
                                 {"high_freq_factor", 4.0},
                                 {"original_max_position_embeddings", 8192}}}});
  ASSERT_TRUE(old_style.ok()) << old_style.status();
  EXPECT_EQ(old_style->rope.theta, 5e5);
  EXPECT_EQ(old_style->rope.original_max_position_embeddings, 8192);
  EXPECT_EQ(old_style->head_dim, 16);
  EXPECT_EQ(old_style->dtype, c10::ScalarType::BFloat16);
  EXPECT_FALSE(old_style->pad_token_id.has_value());
  folder_.Write("generation_config.json", R"({"eos_token_id": [5, 6]})");
  const auto new_style = Load({{"dtype", "float16"},
                               {"rope_theta", 1.0},
                               {"rope_scaling", nullptr},
                               {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 1e6}}}});
  ASSERT_TRUE(new_style.ok()) << new_style.status();
  EXPECT_EQ(new_style->rope.theta, 1e6);
  EXPECT_EQ(new_style->rope.type, RopeType::kDefault);
  EXPECT_EQ(new_style->dtype, c10::ScalarType::Half);
  EXPECT_THAT(new_style->eos_token_ids, testing::ElementsAre(5, 6));
}

}  // namespace
}  // namespace retort
