// Rendered chats and training rows beside transformers' and TRL's (tests/model/make_chat_golden.py).
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "model/tokenizer.h"
#include "model/trl_example.h"
#include "tests/model/tokenizer_folder.h"

namespace retort {
namespace {

using json = nlohmann::ordered_json;

const json& Golden() {
  static const json& golden = *new json([] {
    const char* root = std::getenv("RETORT_SOURCE_DIR");
    std::ifstream file(std::string(root == nullptr ? "." : root) + "/tests/model/data/chat_golden.json");
    return json::parse(file);
  }());
  return golden;
}

std::unique_ptr<Tokenizer> Load(const std::string& chat_template) {
  TemporaryFolder folder;
  nlohmann::json config = TokenizerGolden()["config"];
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  config["chat_template"] = chat_template;
  WriteTokenizer(folder, config);
  auto loaded = Tokenizer::Load(folder.path());
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  return loaded.ok() ? *std::move(loaded) : nullptr;
}

void CheckTemplates(const char* list, const char* messages) {
  const auto tokenizer = Load("");
  ASSERT_NE(tokenizer, nullptr);
  for (const json& one : Golden()[list]) {
    ChatOptions options;
    options.chat_template = one[0].get<std::string>();
    options.variables_json = Golden()["variables"].dump();
    if (options.chat_template.empty()) continue;
    const auto rendered = tokenizer->RenderChat(Golden()[messages].dump(), options);
    ASSERT_EQ(rendered.ok(), !one[1].is_null()) << options.chat_template << ": " << rendered.status();
    if (!rendered.ok()) continue;
    EXPECT_EQ(rendered->text, one[1].get<std::string>()) << options.chat_template;
    json spans = json::array();
    for (const CharacterSpan& span : rendered->generated) spans.push_back({span.first, span.last});
    EXPECT_EQ(spans, one[2]) << options.chat_template;
  }
}

TEST(ChatGoldenTest, ExpressionsPrintAsPythons) { CheckTemplates("expressions", "messages"); }

TEST(ChatGoldenTest, StatementsWriteAsJinjas) { CheckTemplates("templates", "simple"); }

TEST(ChatGoldenTest, FamiliesRenderAsTransformers) {
  for (const json& family : Golden()["families"]) {
    const auto tokenizer = Load(family["template"]);
    ASSERT_NE(tokenizer, nullptr) << family["name"];
    for (const json& one : family["cases"]) {
      ChatOptions options;
      json variables = one[1];
      if (variables.contains("tools")) variables["tools"] = Golden()["tools"];
      options.add_generation_prompt = variables.value("add_generation_prompt", false);
      variables.erase("add_generation_prompt");
      options.variables_json = variables.dump();
      const auto rendered = tokenizer->RenderChat(one[0].get<std::string>(), options);
      ASSERT_EQ(rendered.ok(), !one[2].is_null()) << family["name"] << " " << one << ": " << rendered.status();
      if (rendered.ok()) {
        EXPECT_EQ(rendered->text, one[2].get<std::string>()) << family["name"] << " " << one[0];
      }
    }
  }
}

void CheckRow(const Tokenizer& tokenizer, const json& row, const json& expected) {
  TrlOptions options;
  options.labels = true;
  const auto made = MakeTrlExample(tokenizer, row, options);
  ASSERT_EQ(made.ok(), !expected.contains("error")) << row << ": " << made.status() << " " << expected;
  if (!made.ok()) return;
  EXPECT_EQ(json(made->ids), expected["input_ids"]) << row;
  EXPECT_EQ(json(made->labels), expected["labels"]) << row;
}

TEST(ChatGoldenTest, RowsAreAsTrlPreparesThem) {
  for (const json& family : Golden()["families"]) {
    const auto tokenizer = Load(family["template"]);
    ASSERT_NE(tokenizer, nullptr) << family["name"];
    SCOPED_TRACE(family["name"]);
    for (const json& one : family["rows"]) CheckRow(*tokenizer, one[0], one[1]);
  }
  const auto tokenizer = Load("");
  ASSERT_NE(tokenizer, nullptr);
  for (const json& one : Golden()["trl"]) CheckRow(*tokenizer, one[0], one[1]);
}

}  // namespace
}  // namespace retort
