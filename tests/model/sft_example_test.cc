#include "model/sft_example.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

#include "tests/model/tokenizer_folder.h"

namespace retort {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::unique_ptr<Tokenizer> WithTemplate(const std::string& chat_template, const json& eos) {
  TemporaryFolder folder;
  json config = TokenizerGolden()["config"];
  config["chat_template"] = chat_template;
  config["eos_token"] = eos;
  WriteTokenizer(folder, config);
  return Tokenizer::Load(folder.path()).value();
}

std::string GoldenTemplate(const std::string& name) {
  for (const json& item : TokenizerGolden()["templates"]) {
    if (item["name"] == name) return item["template"].get<std::string>();
  }
  ADD_FAILURE() << name;
  return "";
}

json Conversation(const std::string& answer) {
  return {{"messages", {{{"role", "user"}, {"content", "hi"}}, {{"role", "assistant"}, {"content", answer}}}}};
}

std::string Trained(const Tokenizer& tokenizer, const TrainingExample& example) {
  std::vector<int32_t> trained;
  std::copy_if(example.labels.begin(), example.labels.end(), std::back_inserter(trained),
               [](int32_t label) { return label != kIgnoreLabel; });
  return tokenizer.Decode(trained, false).value();
}

// The text of the trained ids and of the others before them.
std::pair<std::string, std::string> Split(const Tokenizer& tokenizer, const TrainingExample& example) {
  EXPECT_EQ(example.input_ids.size(), example.labels.size());
  std::vector<int32_t> prompt, trained;
  for (size_t i = 0; i < example.labels.size(); ++i) {
    if (example.labels[i] == kIgnoreLabel) {
      EXPECT_TRUE(trained.empty());
      prompt.push_back(example.input_ids[i]);
    } else {
      EXPECT_EQ(example.labels[i], example.input_ids[i]);
      trained.push_back(example.input_ids[i]);
    }
  }
  return {tokenizer.Decode(prompt, false).value(), tokenizer.Decode(trained, false).value()};
}

TEST(SftExampleTest, CutsConversationsAsTheReference) {
  for (const json& group : TokenizerGolden()["examples"]) {
    const auto tokenizer = WithTemplate(GoldenTemplate(group["template"].get<std::string>()), group["eos_token"]);
    for (const json& row : group["rows"]) {
      const auto example = ExampleFromMessages(*tokenizer, row);
      ASSERT_TRUE(example.ok()) << example.status();
      EXPECT_EQ(example->input_ids, row["input_ids"].get<std::vector<int32_t>>())
          << group["template"] << row["messages"];
      EXPECT_EQ(example->labels, row["labels"].get<std::vector<int32_t>>()) << group["template"] << row["messages"];
    }
  }
}

TEST(SftExampleTest, TrainsWhatTheTemplateWritesAfterTheTurn) {
  const auto tokenizer = WithTemplate(GoldenTemplate("chatml"), "<|im_end|>");
  const auto example = ExampleFromMessages(*tokenizer, Conversation("<think>a</think>42"));
  ASSERT_TRUE(example.ok()) << example.status();
  EXPECT_THAT(Split(*tokenizer, *example), testing::Pair("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
                                                         "<think>a</think>42<|im_end|>\n"));
}

TEST(SftExampleTest, KeepsThinkingThatTheTemplateDrops) {
  const auto tokenizer = WithTemplate(GoldenTemplate("r1"), "<|endoftext|>");
  const auto example = ExampleFromMessages(*tokenizer, Conversation("<think>a</think>42"));
  ASSERT_TRUE(example.ok()) << example.status();
  EXPECT_THAT(Split(*tokenizer, *example),
              testing::Pair("<|begin_of_text|><|User|>hi<|Assistant|>", "<think>a</think>42<|endoftext|>"));
}

TEST(SftExampleTest, DoesNotOpenThinkingTwice) {
  const auto tokenizer = WithTemplate(GoldenTemplate("r1_think"), "<|endoftext|>");
  const auto same = ExampleFromMessages(*tokenizer, Conversation("<think>\na</think>42"));
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_THAT(Split(*tokenizer, *same),
              testing::Pair("<|begin_of_text|><|User|>hi<|Assistant|><think>\n", "a</think>42<|endoftext|>"));
  const auto other = ExampleFromMessages(*tokenizer, Conversation("<think>a</think>42"));
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_THAT(Split(*tokenizer, *other),
              testing::Pair("<|begin_of_text|><|User|>hi<|Assistant|>", "<think>a</think>42<|endoftext|>"));
}

// A template that opens the thinking before what an assistant wrote, too.
TEST(SftExampleTest, DoesNotOpenThinkingTwiceWhereTheTemplateWould) {
  const auto tokenizer = WithTemplate(
      "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}<think>\n{% endif %}{{ m.content }}"
      "{% if m.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
      "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
      "<|im_end|>");
  for (const char* content : {"<think>\na</think>42", "a</think>42"}) {
    const auto example = ExampleFromMessages(*tokenizer, Conversation(content));
    ASSERT_TRUE(example.ok()) << example.status();
    EXPECT_THAT(Split(*tokenizer, *example), testing::Pair("<|user|>hi<|assistant|><think>\n", "a</think>42<|im_end|>"))
        << content;
  }
}

TEST(SftExampleTest, TrainsEosWhereTheTemplateWritesAnotherEnd) {
  const auto tokenizer = WithTemplate(GoldenTemplate("chatml"), "<|endoftext|>");
  const auto example = ExampleFromMessages(*tokenizer, Conversation("42 <|endoftext|> 43"));
  ASSERT_TRUE(example.ok()) << example.status();
  EXPECT_EQ(Split(*tokenizer, *example).second, "42 <|endoftext|> 43<|im_end|>\n<|endoftext|>");
}

TEST(SftExampleTest, TheTemplateSeesKeysInTheirOrder) {
  const auto tokenizer = WithTemplate(
      "{{ messages[0] | tojson }}{% if add_generation_prompt %}>{% else %}>{{ messages[1].content }}{% endif %}",
      "<|im_end|>");
  const auto example = ExampleFromMessages(
      *tokenizer,
      nlohmann::ordered_json::parse(
          R"({"messages": [{"role": "user", "name": "b", "content": "a"}, {"role": "assistant", "content": "42"}]})"));
  ASSERT_TRUE(example.ok()) << example.status();
  EXPECT_EQ(Split(*tokenizer, *example).first, R"({"role": "user", "name": "b", "content": "a"}>)");
}

TEST(SftExampleTest, SomethingMustEndTheTurn) {
  const std::string bare = "{% for m in messages %}{{ m.content }}{% endfor %}";
  EXPECT_THAT(std::string(ExampleFromMessages(*WithTemplate(bare, nullptr), Conversation("x")).status().message()),
              HasSubstr("never stop"));
  EXPECT_TRUE(ExampleFromMessages(*WithTemplate(GoldenTemplate("chatml"), nullptr), Conversation("x")).ok());
}

TEST(SftExampleTest, RefusesRowsItCannotTrain) {
  const auto tokenizer = WithTemplate(GoldenTemplate("raising"), "<|im_end|>");
  const char* rows[] = {
      R"(7)",
      R"({})",
      R"({"messages": 7})",
      R"({"messages": []})",
      R"({"messages": [{"role": "assistant", "content": "x"}]})",
      R"({"messages": [7, {"role": "assistant", "content": "x"}]})",
      R"({"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "x"}]})",
      R"({"messages": [{"role": "user", "content": "x"}, {"role": "assistant"}]})",
      R"({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": null}]})",
      R"({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]})",
      R"({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ["x"]}]})",
      R"({"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "x"}]})",
  };
  for (const char* row : rows) {
    EXPECT_EQ(ExampleFromMessages(*tokenizer, nlohmann::ordered_json::parse(row)).status().code(),
              absl::StatusCode::kInvalidArgument)
        << row;
  }
}

TEST(SftExampleTest, TakesTokensAsTheyAre) {
  const auto all = ExampleFromTokens(nlohmann::ordered_json::parse(R"({"input_ids": [0, 9, 3]})"), 10);
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->labels, all->input_ids);
  const auto some =
      ExampleFromTokens(nlohmann::ordered_json::parse(R"({"input_ids": [0, 9, 3], "labels": [-100, -100, 4]})"), 10);
  ASSERT_TRUE(some.ok()) << some.status();
  EXPECT_THAT(some->labels, testing::ElementsAre(-100, -100, 4));
  const char* rows[] = {R"([])",
                        R"({"labels": [1]})",
                        R"({"input_ids": []})",
                        R"({"input_ids": "1"})",
                        R"({"input_ids": [10]})",
                        R"({"input_ids": [-1]})",
                        R"({"input_ids": [-100]})",
                        R"({"input_ids": [1.5]})",
                        R"({"input_ids": [18446744073709551615]})",
                        R"({"input_ids": [4294967297]})",
                        R"({"input_ids": [1, 2], "labels": [1]})",
                        R"({"input_ids": [1], "labels": [-1]})",
                        R"({"input_ids": [1], "labels": {}})"};
  for (const char* row : rows) {
    EXPECT_EQ(ExampleFromTokens(nlohmann::ordered_json::parse(row), 10).status().code(),
              absl::StatusCode::kInvalidArgument)
        << row;
  }
}

TEST(SftExampleTest, FillsTemplates) {
  const auto tokenizer = WithTemplate(GoldenTemplate("chatml"), "<|im_end|>");
  const auto row = nlohmann::ordered_json::parse(R"({"Question": "12 + 30?", "Complex_CoT": "so", "Response": 42})");
  SftOptions options;
  options.prompt_template = "{{Q}}: {}\n<think>{Complex_CoT}</think>{}";
  options.prompt_template_fields = {"Question", "Response"};
  const auto whole = ExampleFromRow(*tokenizer, row, options);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(*tokenizer->Decode(whole->input_ids, true), "{Q}: 12 + 30?\n<think>so</think>42");
  EXPECT_EQ(whole->input_ids.back(), tokenizer->eos_token_id());
  EXPECT_EQ(whole->labels, whole->input_ids);
  options.completion_only_loss = true;
  options.train_on_eos = false;
  const auto last = ExampleFromRow(*tokenizer, row, options);
  ASSERT_TRUE(last.ok()) << last.status();
  EXPECT_EQ(Trained(*tokenizer, *last), "42");
  for (const char* bad : {"no slot", "{", "}", "{missing}", "{}{}{}"}) {
    options.prompt_template = bad;
    EXPECT_EQ(ExampleFromRow(*tokenizer, row, options).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

TEST(SftExampleTest, OptionsDecideWhatIsTrained) {
  const auto tokenizer = WithTemplate(GoldenTemplate("chatml"), "<|im_end|>");
  const auto row = nlohmann::ordered_json::parse(
      R"({"prompt": [{"role": "user", "content": "x"}], "completion": [{"role": "assistant", "content": "42"}]})");
  EXPECT_EQ(Split(*tokenizer, *ExampleFromRow(*tokenizer, row, {})).second, "42<|im_end|>\n");
  SftOptions options;
  options.train_on_eos = false;
  EXPECT_EQ(Trained(*tokenizer, *ExampleFromRow(*tokenizer, row, options)), "42\n");
  options.completion_only_loss = false;
  options.train_on_eos = true;
  const auto all = ExampleFromRow(*tokenizer, row, options);
  EXPECT_EQ(all->labels, all->input_ids);
  options.completion_only_loss = std::nullopt;
  options.assistant_only_loss = true;
  EXPECT_THAT(std::string(ExampleFromRow(*tokenizer, row, options).status().message()), HasSubstr("generation"));
  const auto texts = nlohmann::ordered_json::parse(R"({"prompt": "Hello", "completion": " world"})");
  EXPECT_EQ(Split(*tokenizer, *ExampleFromRow(*tokenizer, texts, {})).second, " world<|im_end|>");
}

TEST(SftExampleTest, PositionsBeginSamples) {
  const auto row = nlohmann::ordered_json::parse(R"({"input_ids": [1, 2, 3, 4, 5], "position_ids": [0, 1, 0, 1, 2]})");
  EXPECT_EQ(ExampleFromTokens(row, 10)->sample_starts, (std::vector<int32_t>{0, 2}));
  for (const char* bad : {"[0, 1, 2, 3]", "[1, 2, 3, 4, 5]", "[0, 1, 3, 4, 5]", "[0, 0, -1, 0, 0]", "7"}) {
    auto wrong = row;
    wrong["position_ids"] = nlohmann::ordered_json::parse(bad);
    EXPECT_EQ(ExampleFromTokens(wrong, 10).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace retort
