#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/file.h"
#include "teacher_gen/jsonl.h"
#include "teacher_gen/prompt_reader.h"
#include "teacher_gen/sample_keys.h"
#include "teacher_gen/trace_text.h"

namespace retort {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr int32_t kNewline = '\n' - 'a';

// A token is a character; 100 is EOS and special, 101 and 102 are <think> and </think>, special where it says so.
class LetterTokenizer final : public Tokenizer {
 public:
  explicit LetterTokenizer(bool think_is_special) : think_is_special_(think_is_special) {}
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, bool add_special_tokens) const override {
    std::vector<int32_t> ids;
    if (add_special_tokens) ids.push_back(100);
    for (const char c : text) ids.push_back(c - 'a');
    return ids;
  }
  absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids, bool skip_special_tokens) const override {
    std::string text;
    for (const int32_t id : ids) {
      if (id > 102) return absl::InvalidArgumentError("outside the vocabulary");
      if (id == 100) {
        if (!skip_special_tokens) text += "<eos>";
      } else if (id == 101 || id == 102) {
        if (!skip_special_tokens || !think_is_special_) text += id == 101 ? "<think>" : "</think>";
      } else {
        text += static_cast<char>('a' + id);
      }
    }
    return text;
  }
  absl::StatusOr<std::string> ApplyChatTemplate(absl::string_view messages_json, bool add_prompt) const override {
    const nlohmann::json messages = nlohmann::json::parse(std::string(messages_json));
    if (messages.empty()) return absl::InvalidArgumentError("template: no messages");
    return messages.back()["content"].get<std::string>() + (add_prompt ? "z" : "");
  }
  int64_t vocab_size() const override { return 103; }
  int32_t TokenToId(absl::string_view token) const override {
    return token == "<think>" ? 101 : token == "</think>" ? 102 : -1;
  }
  int32_t eos_token_id() const override { return 100; }

 private:
  const bool think_is_special_;
};

TEST(TraceText, KeepsThinkAndDropsOtherSpecialTokens) {
  for (const bool special : {true, false}) {
    const LetterTokenizer tokenizer(special);
    TraceText text(tokenizer);
    EXPECT_EQ(*text.Decode({101, 0, 1, 102, 2, 100}), "<think>ab</think>c");
    EXPECT_EQ(*text.Decode({0, 1, 100}), "ab");
    EXPECT_EQ(*text.Decode({}), "");
  }
}

TEST(TraceText, LeavesOutIdsBeyondTheTokenizer) {
  const LetterTokenizer tokenizer(false);
  TraceText text(tokenizer);
  EXPECT_EQ(*text.Decode({0, 5000, 1, 100}), "ab");
  EXPECT_EQ(*text.Decode({101, 5000, 102}), "<think></think>");
}

TEST(TraceText, BeginsWithTheThinkThatThePromptOpened) {
  for (const bool special : {true, false}) {
    const LetterTokenizer tokenizer(special);
    TraceText text(tokenizer);
    EXPECT_EQ(*text.DecodeAfter({0, 1, 101}, {2, 102, 3, 100}), "<think>c</think>d");
    EXPECT_EQ(*text.DecodeAfter({0, 101, kNewline}, {2, 102, 3}), "<think>\nc</think>d");
    EXPECT_EQ(*text.DecodeAfter({101, kNewline}, {}), "<think>\n");
    // The model opens it itself, the prompt has closed it, or never had it.
    EXPECT_EQ(*text.DecodeAfter({0, 101, kNewline}, {101, 2, 102, 3}), "<think>c</think>d");
    EXPECT_EQ(*text.DecodeAfter({101, kNewline, 102}, {3}), "d");
    EXPECT_EQ(*text.DecodeAfter({0, 1}, {2, 102, 3}), "c</think>d");
    EXPECT_EQ(*text.DecodeAfter({}, {2}), "c");
  }
}

TEST(WithOpenedThink, OpensWhatIsOnlyClosed) {
  EXPECT_EQ(WithOpenedThink("a</think>b"), "<think>\na</think>b");
  EXPECT_EQ(WithOpenedThink("<think>a</think>b"), "<think>a</think>b");
  EXPECT_EQ(WithOpenedThink("a</think>b<think>"), "<think>\na</think>b<think>");
  EXPECT_EQ(WithOpenedThink("a<think>"), "a<think>");
  EXPECT_EQ(WithOpenedThink(""), "");
}

TEST(LineToTokens, ReadsEachForm) {
  const LetterTokenizer tokenizer(false);
  EXPECT_THAT(*LineToTokens(&tokenizer, R"({"token_ids": [3, 4]})", true), ElementsAre(3, 4));
  EXPECT_THAT(*LineToTokens(&tokenizer, R"({"text": "ab"})", true), ElementsAre(100, 0, 1));
  EXPECT_THAT(*LineToTokens(&tokenizer, R"({"prompt": "b"})", true), ElementsAre(100, 1));
  EXPECT_THAT(*LineToTokens(&tokenizer, R"({"messages": [{"role": "user", "content": "a"}]})", true),
              ElementsAre(0, 25));
  EXPECT_THAT(*LineToTokens(&tokenizer, R"({"messages": [{"role": "user", "content": "a"}]})", false), ElementsAre(0));
  EXPECT_THAT(*LineToTokens(&tokenizer, R"({"prompt": [{"role": "user", "content": "a"}]})", true), ElementsAre(0, 25));
  EXPECT_THAT(
      *LineToTokens(&tokenizer, R"({"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": false})",
                    true),
      ElementsAre(0));
  EXPECT_THAT(*LineToTokens(&tokenizer, R"({"text": "ab", "add_special_tokens": false})", true), ElementsAre(0, 1));
  for (const char* bad :
       {"[]", "{}", "{", R"({"token_ids": [1.5]})", R"({"token_ids": [-1]})", R"({"text": 3})", R"({"messages": []})",
        R"({"prompt": "a", "completion": "b"})", R"({"messages": "x"})", R"({"token_ids": [99999999999]})"}) {
    EXPECT_FALSE(LineToTokens(&tokenizer, bad, true).ok()) << bad;
  }
  EXPECT_FALSE(LineToTokens(&tokenizer, "  ", true).ok());
  // A model without a tokenizer takes ids alone.
  EXPECT_THAT(*LineToTokens(nullptr, R"({"token_ids": [3, 4]})", true), ElementsAre(3, 4));
  EXPECT_EQ(LineToTokens(nullptr, R"({"text": "ab"})", true).status().code(), absl::StatusCode::kFailedPrecondition);
}

class FileTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) { return ::testing::TempDir() + "/teacher_text_test_" + name; }
  std::string Write(const std::string& name, const std::string& contents) {
    std::ofstream(Path(name)) << contents;
    return Path(name);
  }
};

TEST_F(FileTest, OutputIsInOrderAndAppearsAtTheEnd) {
  const std::string path = Write("out.jsonl", "old\n");
  OrderedOutput output(path);
  ASSERT_TRUE(output.Put(2, {{"n", 2}}).ok());
  ASSERT_TRUE(output.Put(0, {{"n", "half \xc3"}}).ok());
  ASSERT_TRUE(output.PutError(1, absl::InvalidArgumentError("bad")).ok());
  EXPECT_EQ(*ReadFile(path), "old\n");
  ASSERT_TRUE(output.Finish().ok());
  EXPECT_EQ(*ReadFile(path), "{\"n\":\"half \xef\xbf\xbd\"}\n{\"error\":\"bad\"}\n{\"n\":2}\n");
  EXPECT_EQ(output.errors(), 1);
}

TEST_F(FileTest, LinesWithoutText) {
  EXPECT_THAT(*ReadLines(Write("in.jsonl", "{\"a\":1}\n\n  \n{\"b\":2}")),
              ElementsAre("{\"a\":1}", "", "  ", "{\"b\":2}"));
  EXPECT_EQ(ReadLines(Path("absent")).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(FileTest, PromptsBecomeConversations) {
  const std::string path = Write("prompts.jsonl",
                                 "{\"q\": \"one\", \"a\": \"1\"}\n{\"q\": \"two\", \"a\": 2}\n"
                                 "{\"q\": [{\"role\": \"user\", \"content\": \"three\"}]}\n{\"q\": \"four\"}\n");
  v1::PromptSource source;
  source.set_path("/data/prompts.jsonl");
  source.set_prompt_field("q");
  source.set_answer_field("a");
  source.set_weight(0.75);
  std::vector<v1::Prompt> prompts;
  ASSERT_TRUE(AppendPrompts(source, path, "Be brief.", "Think.", prompts).ok());
  ASSERT_THAT(prompts, SizeIs(3));
  EXPECT_EQ(
      nlohmann::json::parse(prompts[0].messages_json()),
      nlohmann::json::parse(R"([{"role":"system","content":"Be brief."},{"role":"user","content":"one\n\nThink."}])"));
  EXPECT_EQ(prompts[0].row_json(), "{\"q\": \"one\", \"a\": \"1\"}");
  EXPECT_EQ(prompts[0].answer(), "1");
  EXPECT_EQ(prompts[1].answer(), "2");
  EXPECT_EQ(prompts[2].answer(), "");
  EXPECT_THAT(prompts[2].messages_json(), HasSubstr("three\\n\\nThink."));
}

TEST_F(FileTest, PromptsKeepTheOrderOfAMessagesKeys) {
  v1::PromptSource source;
  source.set_prompt_field("q");
  const std::string path = Write("ordered.jsonl", R"({"q": "two"})"
                                                  "\n"
                                                  R"({"q": [{"role": "user", "name": "n", "content": "x"}]})"
                                                  "\n");
  std::vector<v1::Prompt> prompts;
  ASSERT_TRUE(AppendPrompts(source, path, "", "", prompts).ok());
  EXPECT_EQ(prompts[0].messages_json(), R"([{"role":"user","content":"two"}])");
  EXPECT_EQ(prompts[1].messages_json(), R"([{"role":"user","name":"n","content":"x"}])");
}

TEST_F(FileTest, PromptErrorsNameTheUsersFileAndLine) {
  v1::PromptSource source;
  source.set_path("/data/prompts.jsonl");
  std::vector<v1::Prompt> prompts;
  const auto error = [&](const std::string& contents) {
    return std::string(AppendPrompts(source, Write("bad.jsonl", contents), "", "", prompts).message());
  };
  EXPECT_THAT(error("{\"prompt\": \"x\"}\n{\"problem\": \"y\"}\n"),
              HasSubstr("/data/prompts.jsonl:2: the row has no field \"prompt\""));
  EXPECT_THAT(error("{\"prompt\": 3}\n"), HasSubstr("/data/prompts.jsonl:1: prompt: must be text"));
  EXPECT_THAT(error("{\"prompt\": [{\"role\": \"assistant\", \"content\": \"x\"}]}\n"),
              HasSubstr("must be the user's"));
  EXPECT_THAT(error("{broken\n"), HasSubstr("/data/prompts.jsonl:1"));
}

TEST(SampleKeys, ChangeWithWhatTheyName) {
  v1::Sampling sampling;
  sampling.set_n(4);
  sampling.set_temperature(0.6);
  sampling.set_top_p(0.95);
  sampling.set_max_tokens(100);
  sampling.set_seed(7);
  const std::string hash = SamplingHash(sampling);
  EXPECT_THAT(hash, SizeIs(32));
  v1::Sampling other = sampling;
  other.set_n(8);
  EXPECT_EQ(SamplingHash(other), hash);
  other.set_seed(8);
  EXPECT_NE(SamplingHash(other), hash);
  EXPECT_NE(PromptHashOfTokens({1, 2}), PromptHashOfTokens({2, 1}));
  EXPECT_EQ(RevisionWithAdapter("revision", ""), "revision");
  EXPECT_NE(RevisionWithAdapter("revision", "adapter"), RevisionWithAdapter("revision", "adapter2"));
  v1::TraceKey key;
  key.set_prompt_hash("p");
  const uint64_t random = RandomKey(1, key);
  EXPECT_NE(RandomKey(2, key), random);
  key.set_sample_index(1);
  EXPECT_NE(RandomKey(1, key), random);
}

}  // namespace
}  // namespace retort
