// distctl tokenize: one line out for each line in, whatever it holds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/cli/distctl_test.h"
#include "tests/model/tokenizer_folder.h"

namespace retort::cli {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::StartsWith;

class TokenizeTest : public DistctlTest {
 protected:
  void SetUp() override {
    DistctlTest::SetUp();
    json config = TokenizerGolden()["config"];
    config["chat_template"] = "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}";
    Write("model/tokenizer.json", TokenizerGolden()["tokenizer"].dump());
    Write("model/tokenizer_config.json", config.dump());
  }

  static std::vector<json> Lines(const std::string& text) {
    std::vector<json> lines;
    for (const std::string& line : std::vector<std::string>(absl::StrSplit(text, '\n', absl::SkipEmpty()))) {
      lines.push_back(json::parse(line));
    }
    return lines;
  }
};

TEST_F(TokenizeTest, GoesThereAndBack) {
  Write("in.jsonl", "{\"text\": \"Hello world\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}");
  const Ended run = Distctl("tokenize --model model --input in.jsonl --output out.jsonl");
  EXPECT_EQ(run.exit_code, 0) << run.err;
  const auto lines = Lines(Read(folder_ / "out.jsonl"));
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["text"], "Hello world");
  EXPECT_EQ(lines[1]["text"], "<|im_start|>x");
  EXPECT_EQ(lines[1]["token_ids"].size(), 2u);
  const Ended back = Distctl("tokenize --model model --decode --skip-special-tokens --input out.jsonl");
  EXPECT_EQ(back.exit_code, 0) << back.err;
  EXPECT_EQ(back.out, "{\"text\": \"Hello world\"}\n{\"text\": \"x\"}\n");
  Write("ids.jsonl", "{\"token_ids\": [0, 999999]}\n{\"token_ids\": [-1]}\n{\"token_ids\": []}\n");
  const Ended wrong = Distctl("tokenize --model model --decode --input ids.jsonl");
  EXPECT_EQ(wrong.exit_code, 1);
  EXPECT_THAT(wrong.out, HasSubstr("999999 is outside the vocabulary"));
  EXPECT_THAT(wrong.out, HasSubstr("{\"text\": \"\"}"));
}

// The rows that a model's embedding has beyond the tokenizer's ids are no text, as in transformers.
TEST_F(TokenizeTest, APaddedVocabularysIdsAreNoText) {
  Write("ids.jsonl", "{\"token_ids\": [0, 90000]}\n{\"token_ids\": [100000]}\n");
  Write("model/config.json", R"({"vocab_size": 100000})");
  const Ended run = Distctl("tokenize --model model --decode --input ids.jsonl");
  EXPECT_EQ(run.exit_code, 1);
  const auto lines = Lines(run.out);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_TRUE(lines[0].contains("text")) << run.out;
  EXPECT_THAT(lines[1].value("error", ""), HasSubstr("100000 is outside the vocabulary"));
}

TEST_F(TokenizeTest, WhatCannotBeDoneStandsInItsPlace) {
  const std::vector<std::string> bad = {
      "",
      "  ",
      "nonsense",
      "{\"text\":\"\xff\"}",
      "{\"text\":7}",
      "[1]",
      "{}",
      R"({"messages":[]})",
      R"({"messages":[7]})",
      R"({"prompt":"a"})",
      R"({"prompt":"a","completion":[]})",
      std::string(5000, '['),
      R"({"text":"\ud800"})",
      R"({"text":"a","add_special_tokens":"x"})",
      R"({"token_ids":[1]})",
      R"({"messages":[{"role":"user","content":"x","n":-18446744073709551616}]})",
      R"({"messages":[{"role":"user","content":"x"}],"chat_template":"{% for"})",
      R"({"messages":[{"role":"user","content":"x"}],"chat_template_kwargs":{"tools":7}})",
      absl::StrCat("{\"text\":\"", std::string(9 << 20, 'a'), "\"}")};
  std::string input;
  for (const std::string& line : bad) absl::StrAppend(&input, line, "\n{\"text\": \"a\"}\n");
  Write("in.jsonl", input);
  const Ended run = Distctl("tokenize --model model --input in.jsonl");
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr(absl::StrCat(bad.size(), " of ", 2 * bad.size(), " lines")));
  const auto lines = Lines(run.out);
  ASSERT_EQ(lines.size(), 2 * bad.size());
  for (size_t i = 0; i < lines.size(); i += 2) {
    EXPECT_TRUE(lines[i].contains("error")) << bad[i / 2].substr(0, 100) << lines[i];
    EXPECT_EQ(lines[i + 1]["text"], "a");
  }
}

TEST_F(TokenizeTest, KeepsTheOrderOfManyLines) {
  std::string input;
  for (int i = 0; i < 10000; ++i) absl::StrAppend(&input, "{\"text\": \"", i, "\"}\n");
  Write("in.jsonl", input);
  const auto lines = Lines(Distctl("tokenize --model model --input in.jsonl --threads 4").out);
  ASSERT_EQ(lines.size(), 10000u);
  for (int i = 0; i < 10000; ++i) ASSERT_EQ(lines[i]["text"], std::to_string(i));
}

TEST_F(TokenizeTest, ShowsWhatIsTrained) {
  Write("in.jsonl", R"({"prompt": "Hello", "completion": " world"})");
  const auto lines = Lines(Distctl("tokenize --model model --mask --input in.jsonl").out);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_EQ(lines[0]["labels"][0], -100);
  EXPECT_EQ(lines[0]["labels"].back(), lines[0]["token_ids"].back());
  EXPECT_EQ(lines[0]["text"], "Hello world<|im_end|>");
  const Ended shown = Distctl("tokenize --model model --mask --color always --input in.jsonl");
  EXPECT_THAT(shown.out, HasSubstr("\x1b["));
  EXPECT_THAT(shown.out, HasSubstr("trained"));
  environment_ += " NO_COLOR=1";
  const Ended plain = Distctl("tokenize --model model --mask --color always --input in.jsonl");
  EXPECT_THAT(plain.out, testing::Not(HasSubstr("\x1b[")));
  EXPECT_THAT(plain.out, HasSubstr("[<|im_end|>]"));
}

TEST_F(TokenizeTest, SaysWhatIsWrongWithItsArguments) {
  EXPECT_EQ(Distctl("tokenize").exit_code, 2);
  EXPECT_EQ(Distctl("tokenize --model model --mask --decode").exit_code, 2);
  EXPECT_EQ(Distctl("tokenize --model model --skip-special-tokens").exit_code, 2);
  const Ended none = Distctl("tokenize --model nowhere < /dev/null");
  EXPECT_EQ(none.exit_code, 1);
  EXPECT_THAT(none.err, StartsWith("distctl: no tokenizer in nowhere"));
  EXPECT_EQ(Distctl("tokenize --model model --input missing.jsonl").exit_code, 1);
  EXPECT_EQ(Distctl("tokenize --model model < /dev/null").exit_code, 0);
}

}  // namespace
}  // namespace retort::cli
