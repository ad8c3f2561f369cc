// The golden model of every family, to GGUF and back.
#include "model/convert/convert.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "absl/strings/match.h"
#include "model/config.h"
#include "model/convert/gguf_source.h"
#include "model/fp8_blocks.h"
#include "model/gguf/quants.h"
#include "model/safetensors.h"
#include "model/safetensors_source.h"
#include "model/tokenizer.h"
#include "tests/model/tokenizer_folder.h"

namespace retort {
namespace {

using gguf::FileType;
using testing::HasSubstr;
namespace fs = std::filesystem;

std::string Family(const std::string& name) {
  const char* root = std::getenv("RETORT_SOURCE_DIR");
  return std::string(root == nullptr ? "." : root) + "/tests/golden/families/" + name;
}

std::string Quantized(const std::string& name) { return Family("../quantized/" + name); }

// As f32, block-wise float8 unfolded.
at::Tensor Values(TensorSource& source, const std::string& name) {
  const at::Tensor stored = source.Get(name).value();
  if (!source.Has(name + "_scale_inv")) return stored.to(at::kFloat);
  return DequantiseBlockFp8(stored, source.Get(name + "_scale_inv").value(), at::kFloat).value();
}

class ConvertTest : public testing::Test {
 protected:
  absl::Status ToGguf(const std::string& folder, const std::string& file, FileType type, bool overwrite = false) {
    warnings_.clear();
    return ConvertToGguf(folder, folder_ / file, type, {overwrite, &warnings_});
  }
  absl::Status ToHf(const std::string& file, const std::string& folder,
                    std::optional<c10::ScalarType> dtype = std::nullopt, bool overwrite = false) {
    warnings_.clear();
    return ConvertToHf(folder_ / file, folder_ / folder, {.dtype = dtype}, {overwrite, &warnings_});
  }
  // What lies in the test's folder, so that nothing half-written is overlooked.
  std::set<std::string> Left() const {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_.path())) names.insert(entry.path().filename().string());
    return names;
  }

  TemporaryFolder folder_;
  std::vector<std::string> warnings_;
};

class FamilyTest : public ConvertTest, public testing::WithParamInterface<const char*> {};

TEST_P(FamilyTest, SurvivesTheWayToGgufAndBack) {
  const std::string original = Family(GetParam());
  ASSERT_EQ(ToGguf(original, "x.gguf", FileType::kF32), absl::OkStatus());
  ASSERT_EQ(ToHf("x.gguf", "back"), absl::OkStatus());
  const auto before = OpenSafetensorsFolder(original).value();
  const auto after = OpenSafetensorsFolder(folder_ / "back").value();
  size_t compared = 0;
  for (const std::string& name : after->Names()) {
    ASSERT_TRUE(before->Has(name)) << name;
    EXPECT_TRUE(at::equal(after->Get(name)->to(at::kFloat), Values(*before, name))) << name;
    ++compared;
  }
  EXPECT_GT(compared, 10u);

  const ModelConfig config = LoadModelConfig(original).value();
  const ModelConfig back = LoadModelConfig(folder_ / "back").value();
  // llama.cpp has no other name for Mistral, and without a window there is no difference.
  EXPECT_EQ(back.model_type, std::string(GetParam()) == "mistral_head_dim" ? "llama" : config.model_type);
  EXPECT_EQ(back.vocab_size, config.vocab_size);
  EXPECT_EQ(back.num_hidden_layers, config.num_hidden_layers);
  EXPECT_EQ(back.num_attention_heads, config.num_attention_heads);
  EXPECT_EQ(back.num_key_value_heads, config.num_key_value_heads);
  EXPECT_EQ(back.head_dim, config.head_dim);
  EXPECT_EQ(back.max_position_embeddings, config.max_position_embeddings);
  EXPECT_EQ(back.rms_norm_eps, config.rms_norm_eps);
  EXPECT_EQ(back.tie_word_embeddings, config.tie_word_embeddings);
  EXPECT_EQ(back.rope.type, config.rope.type);
  EXPECT_EQ(back.rope.theta, config.rope.theta);
  EXPECT_EQ(back.rope.dim, config.rope.dim);
  EXPECT_EQ(back.rope.factor, config.rope.factor);
  EXPECT_EQ(back.rope.original_max_position_embeddings, config.rope.original_max_position_embeddings);
  EXPECT_EQ(back.rope.low_freq_factor, config.rope.low_freq_factor);
  EXPECT_EQ(back.rope.high_freq_factor, config.rope.high_freq_factor);
  EXPECT_NEAR(back.rope.attention_factor, config.rope.attention_factor, 1e-6);
  EXPECT_EQ(back.rope.short_factor, config.rope.short_factor);
  EXPECT_EQ(back.rope.long_factor, config.rope.long_factor);
  EXPECT_EQ(back.bos_token_id, config.bos_token_id);
  EXPECT_EQ(back.eos_token_ids, config.eos_token_ids);
  EXPECT_EQ(Left(), (std::set<std::string>{"x.gguf", "back"}));
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyTest,
                         testing::Values("llama3_tied", "llama_biases", "llama_mha", "llama_yarn", "mistral_head_dim",
                                         "mistral_window", "qwen2_tied", "qwen2_yarn", "qwen2_window", "qwen3_biases",
                                         "qwen3_tied", "phi3_longrope", "phi3_partial", "phi3_window",
                                         "deepseek_v2_lite", "deepseek_v3", "deepseek_v3_fp8"),
                         [](const auto& info) { return std::string(info.param); });

TEST_F(ConvertTest, QuantisedTensorsComeBackAsTheirBlocksSay) {
  const std::string original = Family("llama3_tied");
  ASSERT_EQ(ToGguf(original, "x.gguf", FileType::kQ8_0), absl::OkStatus());
  const auto source = GgufSource::Open(folder_ / "x.gguf").value();
  const auto before = OpenSafetensorsFolder(original).value();
  size_t quantised = 0;
  for (const gguf::TensorInfo& tensor : source->file().tensors()) quantised += tensor.type == gguf::TensorType::kQ8_0;
  EXPECT_GT(quantised, 0u);
  for (const std::string& name : source->Names()) {
    const at::Tensor want = before->Get(name)->to(at::kFloat);
    const at::Tensor got = source->Get(name)->to(at::kFloat);
    ASSERT_EQ(got.sizes(), want.sizes()) << name;
    const float worst = got.sub(want).abs().max().item<float>();
    EXPECT_LE(worst, want.abs().max().item<float>() / 127) << name;
    const auto description = source->Describe(name).value();
    EXPECT_EQ(source->Get(name)->scalar_type(), description.dtype) << name;
    EXPECT_EQ(got.sizes().vec(), description.shape) << name;
  }
}

TEST_F(ConvertTest, TakesTheDtypeThatLosesNothing) {
  ASSERT_EQ(ToGguf(Family("llama3_tied"), "x.gguf", FileType::kBF16), absl::OkStatus());
  ASSERT_EQ(ToHf("x.gguf", "back"), absl::OkStatus());
  EXPECT_EQ(LoadModelConfig(folder_ / "back")->dtype, at::kBFloat16);
  EXPECT_EQ(OpenSafetensorsFolder(folder_ / "back").value()->Get("model.norm.weight")->scalar_type(), at::kBFloat16);
  // Norms of more bits than the matrices have.
  ASSERT_EQ(ToGguf(Family("llama_mha"), "x.gguf", FileType::kBF16, true), absl::OkStatus());
  ASSERT_EQ(ToHf("x.gguf", "back", std::nullopt, true), absl::OkStatus());
  EXPECT_EQ(LoadModelConfig(folder_ / "back")->dtype, at::kFloat);
  ASSERT_EQ(ToHf("x.gguf", "half", at::kHalf), absl::OkStatus());
  EXPECT_EQ(OpenSafetensorsFolder(folder_ / "half").value()->Get("model.norm.weight")->scalar_type(), at::kHalf);
}

TEST_F(ConvertTest, ReplacesOnlyWhenToldAndLeavesNothingHalfDone) {
  ASSERT_EQ(ToGguf(Family("llama_mha"), "x.gguf", FileType::kF32), absl::OkStatus());
  EXPECT_EQ(ToGguf(Family("llama_mha"), "x.gguf", FileType::kF32).code(), absl::StatusCode::kAlreadyExists);
  fs::create_directory(folder_ / "notes");
  std::ofstream(folder_ / "notes/diary.txt") << "kept";
  EXPECT_EQ(ToHf("x.gguf", "notes").code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(ToHf("x.gguf", "notes", std::nullopt, true).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(fs::exists(folder_ / "notes/diary.txt"));
  EXPECT_EQ(ToGguf(folder_ / "notes", "y.gguf", FileType::kF32).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Left(), (std::set<std::string>{"x.gguf", "notes"}));
}

TEST_F(ConvertTest, SaysWhatIsWrongWithAFolder) {
  fs::copy(Family("llama_mha"), folder_ / "model");
  const std::string weights = folder_ / "model/model.safetensors";
  const auto file = SafetensorsFile::Open(weights).value();
  std::map<std::string, at::Tensor> tensors;
  for (const std::string& name : file.names()) tensors[name] = file.Get(name)->clone();
  const auto try_with = [&](const std::string& name, std::optional<at::Tensor> tensor, FileType type) {
    auto changed = tensors;
    changed.erase(name);
    if (tensor) changed[name] = *tensor;
    EXPECT_EQ(WriteSafetensors(weights, changed), absl::OkStatus());
    return ToGguf(folder_ / "model", "x.gguf", type);
  };
  const std::string q = "model.layers.1.self_attn.q_proj.weight";
  EXPECT_THAT(std::string(try_with(q, std::nullopt, FileType::kF32).message()), HasSubstr(q));
  EXPECT_THAT(std::string(try_with(q, at::zeros({3, 3}), FileType::kF32).message()), HasSubstr("[3, 3]"));
  EXPECT_THAT(std::string(try_with("model.layers.0.extra.weight", at::zeros({3}), FileType::kF32).message()),
              HasSubstr("model.layers.0.extra.weight"));
  const at::Tensor large = tensors[q].to(at::kFloat).mul(1e9);
  EXPECT_THAT(std::string(try_with(q, large, FileType::kF16).message()), HasSubstr("too large for F16"));
  EXPECT_EQ(Left(), (std::set<std::string>{"model"}));
  EXPECT_EQ(try_with(q, large, FileType::kBF16), absl::OkStatus());
}

// What transformers saved after bitsandbytes had quantised the same model, byte for byte.
TEST_F(ConvertTest, QuantisesAFolderAsTransformersSavesIt) {
  const std::tuple<const char*, const char*, QuantType> cases[] = {{"llama3_tied", "llama_nf4", QuantType::kNf4},
                                                                   {"qwen2_window", "qwen2_int8", QuantType::kInt8},
                                                                   {"deepseek_v3", "deepseek_nf4", QuantType::kNf4}};
  for (const auto& [source, golden, type] : cases) {
    ASSERT_EQ(
        ConvertToHf(Family(source), folder_ / golden, {.quantise = QuantiseOptions{.type = type}}, {false, &warnings_}),
        absl::OkStatus());
    const auto own = OpenSafetensorsFolder(folder_ / golden).value();
    const auto wanted = OpenSafetensorsFolder(Quantized(golden)).value();
    EXPECT_EQ(own->Names(), wanted->Names()) << golden;
    for (const std::string& name : wanted->Names()) {
      const auto got = own->Get(name);
      ASSERT_TRUE(got.ok()) << golden << ": " << got.status();
      EXPECT_TRUE(at::equal(*got, *wanted->Get(name)) && got->scalar_type() == wanted->Get(name)->scalar_type())
          << golden << ": " << name;
    }
    EXPECT_TRUE(LoadModelConfig(folder_ / golden)->bitsandbytes);
  }
}

TEST_F(ConvertTest, AQuantisedFolderGoesAnywhere) {
  for (const char* golden : {"llama_nf4", "phi3_fp4", "qwen2_int8", "deepseek_nf4"}) {
    const ModelWeights weights = LoadWeights(Quantized(golden), at::kFloat, at::kCPU).value();
    ASSERT_EQ(ConvertToHf(Quantized(golden), folder_ / golden, {.dtype = at::kFloat}, {false, &warnings_}),
              absl::OkStatus());
    EXPECT_FALSE(LoadModelConfig(folder_ / golden)->bitsandbytes);
    EXPECT_EQ(LoadModelConfig(folder_ / golden)->dtype, at::kFloat);
    ASSERT_EQ(ToGguf(Quantized(golden), "x.gguf", FileType::kF32, /*overwrite=*/true), absl::OkStatus());
    const auto gguf = GgufSource::Open(folder_ / "x.gguf").value();
    const auto plain = OpenSafetensorsFolder(folder_ / golden).value();
    for (const auto& [name, tensor] : NamedTensors(weights)) {
      EXPECT_TRUE(at::equal(*plain->Get(name), tensor)) << golden << ": " << name;
      EXPECT_TRUE(at::equal(*gguf->Get(name), tensor)) << golden << ": " << name;
    }
  }
}

TEST_F(ConvertTest, AGgufFileMayBecomeAQuantisedFolder) {
  ASSERT_EQ(ToGguf(Family("llama3_tied"), "x.gguf", FileType::kBF16), absl::OkStatus());
  ASSERT_EQ(ConvertToHf(folder_ / "x.gguf", folder_ / "back", {.quantise = QuantiseOptions{}}, {false, &warnings_}),
            absl::OkStatus());
  const auto own = OpenSafetensorsFolder(folder_ / "back").value();
  const auto wanted = OpenSafetensorsFolder(Quantized("llama_nf4")).value();
  for (const std::string& name : wanted->Names()) EXPECT_TRUE(at::equal(*own->Get(name), *wanted->Get(name))) << name;
}

TEST_F(ConvertTest, AFolderIsNotReplacedByItself) {
  fs::copy(Family("llama_mha"), folder_ / "model");
  const absl::Status status = ConvertToHf(folder_ / "model", folder_ / "model", {}, {true, &warnings_});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(fs::exists(folder_ / "model/model.safetensors"));
}

TEST_F(ConvertTest, TokenizerAndTemplateComeBackWhole) {
  fs::copy(Family("llama_mha"), folder_ / "model");
  nlohmann::json config = ReadJsonFile(folder_ / "model/config.json").value();
  const int64_t vocab = config["vocab_size"].get<int64_t>();
  const nlohmann::json end = {{"id", 5},         {"content", "<|end|>"}, {"single_word", false}, {"lstrip", false},
                              {"rstrip", false}, {"normalized", false},  {"special", true}};
  const nlohmann::json tokenizer = {
      {"version", "1.0"},
      {"added_tokens", nlohmann::json::array({end})},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model",
       {{"type", "BPE"},
        {"vocab", {{"a", 0}, {"b", 1}, {"ab", 2}, {"c", 3}, {"\u0120", 4}}},
        {"merges", nlohmann::json::array({nlohmann::json::array({"a", "b"})})}}}};
  std::ofstream(folder_ / "model/tokenizer.json") << tokenizer.dump();
  std::ofstream(folder_ / "model/tokenizer_config.json")
      << R"({"eos_token": "<|end|>", "chat_template": "{{ messages[0]['content'] }}|", "tokenizer_class": "PreTrainedTokenizerFast"})";
  ASSERT_EQ(ToGguf(folder_ / "model", "x.gguf", FileType::kF32), absl::OkStatus());
  const auto source = GgufSource::Open(folder_ / "x.gguf").value();
  EXPECT_EQ(source->file().String("tokenizer.ggml.pre").value(), "gpt-2");
  EXPECT_EQ(source->file().Strings("tokenizer.ggml.tokens")->size(), static_cast<size_t>(vocab));
  EXPECT_EQ(source->file().Integer("tokenizer.ggml.eos_token_id").value(), 5);
  ASSERT_EQ(ToHf("x.gguf", "back"), absl::OkStatus());
  EXPECT_EQ(ReadJsonFile(folder_ / "back/tokenizer.json").value(), tokenizer);
  // From the file itself, too.
  for (const std::string& from : {folder_ / "x.gguf", folder_ / "back"}) {
    const auto loaded = Tokenizer::Load(from);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_THAT((*loaded)->Encode("ab c<|end|>", false).value(), testing::ElementsAre(2, 4, 3, 5));
    EXPECT_EQ((*loaded)->eos_token_id(), 5);
  }
}

}  // namespace
}  // namespace retort
