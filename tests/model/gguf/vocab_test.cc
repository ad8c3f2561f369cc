#include "model/gguf/vocab.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "model/gguf/pre_tokenizers.h"
#include "model/gguf/sentencepiece.h"
#include "tests/model/gguf/file_builder.h"

namespace retort::gguf {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;

std::string Texts(const std::vector<std::string>& texts) {
  std::string bytes;
  for (const std::string& text : texts) bytes += RawString(text);
  return bytes;
}

std::string Numbers(const std::vector<int32_t>& numbers) {
  std::string bytes;
  for (const int32_t number : numbers) bytes += Raw(number);
  return bytes;
}

FileBuilder WithTokens(const std::string& model, const std::vector<std::string>& tokens,
                       const std::vector<int32_t>& types) {
  FileBuilder file;
  file.String("general.architecture", "llama").String("tokenizer.ggml.model", model);
  file.Array("tokenizer.ggml.tokens", ValueType::kString, tokens.size(), Texts(tokens));
  file.Array("tokenizer.ggml.token_type", ValueType::kInt32, types.size(), Numbers(types));
  return file;
}

absl::StatusOr<std::map<std::string, std::string>> FilesOf(const FileBuilder& builder) {
  const std::string bytes = builder.Build();
  return TokenizerFilesFromGguf(**File::Parse(bytes, "x.gguf"));
}

TEST(TokenizerFromGgufTest, ByteLevel) {
  FileBuilder file = WithTokens("gpt2", {"a", "b", "ab", "<s>", "</s>", "[PAD5]", "two words"}, {1, 1, 1, 3, 3, 5, 4});
  file.String("tokenizer.ggml.pre", "llama-bpe");
  file.Array("tokenizer.ggml.merges", ValueType::kString, 1, Texts({"a b"}));
  file.Uint32("tokenizer.ggml.bos_token_id", 3).Uint32("tokenizer.ggml.eos_token_id", 4);
  file.String("tokenizer.chat_template", "{{ messages }}");
  const auto files = FilesOf(file);
  ASSERT_TRUE(files.ok()) << files.status();
  const json tokenizer = json::parse(files->at("tokenizer.json"));
  EXPECT_TRUE(tokenizer["model"]["ignore_merges"].get<bool>());
  EXPECT_FALSE(tokenizer["model"]["vocab"].contains("[PAD5]"));
  EXPECT_EQ(tokenizer["model"]["merges"], json::array({json::array({"a", "b"})}));
  ASSERT_EQ(tokenizer["added_tokens"].size(), 3u);
  EXPECT_TRUE(tokenizer["added_tokens"][0]["special"].get<bool>());
  EXPECT_EQ(tokenizer["added_tokens"][2]["content"], "two words");
  EXPECT_FALSE(tokenizer["added_tokens"][2]["special"].get<bool>());
  // Llama 3 begins with bos, though the file does not say so.
  EXPECT_EQ(tokenizer["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
  const json config = json::parse(files->at("tokenizer_config.json"));
  EXPECT_EQ(config["bos_token"], "<s>");
  EXPECT_EQ(config["eos_token"], "</s>");
  EXPECT_EQ(config["chat_template"], "{{ messages }}");
}

TEST(TokenizerFromGgufTest, SentencePiece) {
  FileBuilder file =
      WithTokens("llama", {"<unk>", "<s>", "</s>", "<0x0A>", "\u2581", "a", "\u2581a"}, {2, 3, 3, 6, 1, 1, 1});
  std::string scores;
  for (const float score : {0.0F, 0.0F, 0.0F, 0.0F, -2.0F, -3.0F, -1.0F}) scores += Raw(score);
  file.Array("tokenizer.ggml.scores", ValueType::kFloat32, 7, scores);
  file.Uint32("tokenizer.ggml.bos_token_id", 1).Uint32("tokenizer.ggml.unknown_token_id", 0);
  file.Key("tokenizer.ggml.add_bos_token", ValueType::kBool, Raw<uint8_t>(0));
  const auto files = FilesOf(file);
  ASSERT_TRUE(files.ok()) << files.status();
  const json tokenizer = json::parse(files->at("tokenizer.json"));
  EXPECT_TRUE(tokenizer["model"]["byte_fallback"].get<bool>());
  EXPECT_EQ(tokenizer["model"]["unk_token"], "<unk>");
  EXPECT_EQ(tokenizer["model"]["merges"], json::array({json::array({"\u2581", "a"})}));
  EXPECT_EQ(tokenizer["normalizer"]["normalizers"][0]["type"], "Prepend");
  EXPECT_TRUE(tokenizer["post_processor"].is_null());
}

TEST(TokenizerFromGgufTest, EachLieIsRefused) {
  const std::vector<std::string> tokens = {"a", "b", "ab"};
  const auto with = [&](const std::vector<std::string>& merges) {
    FileBuilder file = WithTokens("gpt2", tokens, {1, 1, 1});
    return file.Array("tokenizer.ggml.merges", ValueType::kString, merges.size(), Texts(merges));
  };
  FileBuilder other_kind = WithTokens("bert", tokens, {1, 1, 1});
  FileBuilder no_merges = WithTokens("gpt2", tokens, {1, 1, 1});
  FileBuilder few_types = WithTokens("gpt2", tokens, {1, 1});
  FileBuilder no_scores = WithTokens("llama", tokens, {1, 1, 1});
  FileBuilder own = WithTokens("gpt2", tokens, {1, 1, 1}).String("tokenizer.huggingface.json", "{not JSON");
  const std::pair<const char*, FileBuilder> cases[] = {
      {"another kind", other_kind},
      {"no merges", no_merges},
      {"a type too few", few_types},
      {"no scores", no_scores},
      {"no tokens", WithTokens("gpt2", {}, {})},
      {"a merge of one", with({"ab"})},
      {"a merge of nothing", with({" "})},
      {"a merge that ends early", with({"a "})},
      {"a merge of unknown tokens", with({"b a"})},
      {"a merge that is no UTF-8", with({"a \xff"})},
      {"an id beyond the tokens", with({"a b"}).Uint32("tokenizer.ggml.bos_token_id", 3)},
      {"an id that is text", with({"a b"}).String("tokenizer.ggml.eos_token_id", "0")},
      {"a pre-tokenizer of no name", with({"a b"}).String("tokenizer.ggml.pre", "nosuch")},
      {"a template that is no UTF-8", with({"a b"}).String("tokenizer.chat_template", "\xff")},
      {"a tokenizer.json that is none", own},
  };
  for (const auto& [name, builder] : cases) {
    const auto files = FilesOf(builder);
    ASSERT_FALSE(files.ok()) << name;
    EXPECT_THAT(std::string(files.status().message()), HasSubstr("x.gguf: ")) << name;
  }
  EXPECT_TRUE(FilesOf(FileBuilder().String("general.architecture", "llama"))->empty());
}

TEST(PreTokenizerTest, EachIsRecognisedInWhatItWrites) {
  for (const char* name : {"llama-bpe", "dbrx", "qwen2", "stablelm2", "smollm", "gpt-2", "deepseek-llm",
                           "deepseek-coder", "deepseek-v3", "tekken", "gpt-4o"}) {
    const PreTokenizer* pre = FindPreTokenizer(name);
    ASSERT_NE(pre, nullptr) << name;
    const json tokenizer = {{"pre_tokenizer", PreTokenizerJson(*pre)},
                            {"normalizer", NormalizerJson(*pre)},
                            {"model", {{"ignore_merges", pre->ignore_merges}}}};
    EXPECT_EQ(RecognisePreTokenizer(tokenizer), pre) << name;
  }
  EXPECT_EQ(FindPreTokenizer("deepseek-r1-qwen"), FindPreTokenizer("qwen2"));
  EXPECT_EQ(FindPreTokenizer("nosuch"), nullptr);
  EXPECT_EQ(RecognisePreTokenizer({{"pre_tokenizer", {{"type", "Whitespace"}}}, {"model", json::object()}}), nullptr);
  EXPECT_EQ(RecognisePreTokenizer(json::object()), nullptr);
}

TEST(SentencePieceTest, MergesComeBestScoreFirst) {
  const std::vector<std::string> tokens = {"a", "b", "c", "ab", "bc", "abc"};
  const std::vector<double> scores = {-10, -11, -12, -2, -1, -3};
  EXPECT_THAT(MergesFromScores(tokens, scores),
              ElementsAre(Pair("b", "c"), Pair("a", "b"), Pair("ab", "c"), Pair("a", "bc")));
}

TEST(SentencePieceTest, ReadsPieces) {
  const auto piece = [](const std::string& text, float score, char type) {
    std::string bytes = "\x0a";
    bytes += static_cast<char>(text.size());
    bytes += text + "\x15" + Raw(score);
    if (type != 0) bytes += std::string("\x18") + type;
    return "\x0a" + std::string(1, static_cast<char>(bytes.size())) + bytes;
  };
  const std::string model = piece("<unk>", 0, 2) + piece("\u2581a", -1.5F, 0) + "\x12\x02xx";
  const auto pieces = ParseSentencePieceModel(model);
  ASSERT_TRUE(pieces.ok()) << pieces.status();
  ASSERT_EQ(pieces->size(), 2u);
  EXPECT_EQ((*pieces)[0].type, TokenType::kUnknown);
  EXPECT_EQ((*pieces)[1].text, "\u2581a");
  EXPECT_EQ((*pieces)[1].score, -1.5F);
  for (size_t bytes = 0; bytes < model.size(); ++bytes) (void)ParseSentencePieceModel(model.substr(0, bytes));
  EXPECT_FALSE(ParseSentencePieceModel("").ok());
  EXPECT_FALSE(ParseSentencePieceModel("\x0a\xff\xff\xff\xff\x0f").ok());
  EXPECT_FALSE(ParseSentencePieceModel(std::string(20, '\xff')).ok());
}

}  // namespace
}  // namespace retort::gguf
