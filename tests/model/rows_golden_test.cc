// Rows of a job's dataset beside TRL's SFTTrainer, and added tokens beside transformers' add_tokens
// (tests/model/make_rows_golden.py).
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "model/training_rows.h"
#include "tests/model/tokenizer_folder.h"

namespace retort {
namespace {

using json = nlohmann::ordered_json;

const json& Golden() {
  static const json& golden = *new json([] {
    const char* root = std::getenv("RETORT_SOURCE_DIR");
    std::ifstream file(std::string(root == nullptr ? "." : root) + "/tests/model/data/rows_golden.json");
    return json::parse(file);
  }());
  return golden;
}

nlohmann::json Config(const std::string& chat_template) {
  nlohmann::json config = TokenizerGolden()["config"];
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  config["chat_template"] = chat_template;
  return config;
}

std::unique_ptr<Tokenizer> Load(const std::string& chat_template, const TokenizerOptions& options = {}) {
  TemporaryFolder folder;
  WriteTokenizer(folder, Config(chat_template));
  return Tokenizer::Load(folder.path(), options).value();
}

void ExpectSame(const absl::StatusOr<TrainingExample>& example, const json& expected) {
  ASSERT_FALSE(expected.contains("error")) << expected["error"];
  ASSERT_TRUE(example.ok()) << example.status();
  EXPECT_EQ(example->input_ids, expected["input_ids"].get<std::vector<int32_t>>()) << expected;
  EXPECT_EQ(example->labels, expected["labels"].get<std::vector<int32_t>>()) << expected;
}

TEST(RowsGoldenTest, RowsAreTrainedAsTrlTrainsThem) {
  ASSERT_FALSE(Golden()["rows"].empty());
  for (const json& one : Golden()["rows"]) {
    SCOPED_TRACE(one.dump());
    const auto tokenizer = Load(one["template"].get<std::string>());
    v1::TrainingSpec training;
    if (one["options"].contains("completion_only_loss")) {
      training.set_completion_only_loss(one["options"]["completion_only_loss"].get<bool>());
    }
    training.set_assistant_only_loss(one["options"].value("assistant_only_loss", false));
    const SftOptions options = SftOptionsOf(training, v1::DatasetSource());
    const auto row = nlohmann::json(one["row"]);
    const auto format = InferRowFormat(row);
    ASSERT_TRUE(format.ok()) << format.status();
    EXPECT_TRUE(CheckTrainingRow(row, *format, options).ok());
    ExpectSame(ExampleFromRow(*tokenizer, one["row"], options), one);
  }
}

TEST(RowsGoldenTest, FilledTemplatesAreTheirTexts) {
  const auto tokenizer = Load("");
  for (const json& one : Golden()["filled"]) {
    v1::DatasetSource source;
    source.set_prompt_template(one["template"].get<std::string>());
    for (const json& field : one["fields"]) source.add_prompt_template_fields(field.get<std::string>());
    ExpectSame(ExampleFromRow(*tokenizer, one["row"], SftOptionsOf(v1::TrainingSpec(), source)), one);
  }
}

TEST(RowsGoldenTest, AddedTokensGetTheIdsThatTransformersGives) {
  for (const json& one : Golden()["added"]) {
    SCOPED_TRACE(one.dump());
    const bool special = one["special"].get<bool>();
    const auto tokens = one["tokens"].get<std::vector<std::string>>();
    TokenizerOptions options;
    (special ? options.add_special_tokens : options.add_tokens) = tokens;
    const auto added = Load("", options);
    const auto base = Load("");
    std::vector<int32_t> ids;
    for (size_t i = 0; i < tokens.size(); ++i) {
      const TokenAdditions::Token& token = added->additions().tokens[i];
      EXPECT_EQ(token.text, tokens[i]);
      // A second of the same is known, too.
      const bool repeated = std::find(tokens.begin(), tokens.begin() + static_cast<int>(i), tokens[i]) !=
                            tokens.begin() + static_cast<int>(i);
      EXPECT_EQ(token.known, repeated || base->TokenToId(tokens[i]) >= 0) << token.text;
      ids.push_back(token.id);
    }
    EXPECT_EQ(ids, one["of_tokens"].get<std::vector<int32_t>>());
    EXPECT_EQ(added->vocab_size(), one["size"].get<int64_t>());
    EXPECT_EQ(added->additions().ids_before.size(), static_cast<size_t>(base->vocab_size()));
    const std::string text = one["text"].get<std::string>();
    EXPECT_EQ(*added->Encode(text, true), one["ids"].get<std::vector<int32_t>>());
    EXPECT_EQ(*added->Decode(one["ids"].get<std::vector<int32_t>>(), true), one["plain"].get<std::string>());
  }
}

TEST(RowsGoldenTest, FilesOfATokenizerAreThatTokenizer) {
  const std::string marked = Golden()["rows"].back()["template"].get<std::string>();
  TokenizerOptions options;
  options.add_tokens = {"<think>"};
  options.add_special_tokens = {"<|extra|>"};
  const auto tokenizer = Load(marked, options);
  const auto files = tokenizer->Files();
  ASSERT_TRUE(files.ok()) << files.status();
  TemporaryFolder folder;
  for (const auto& [name, contents] : *files) folder.Write(name, contents);
  const auto again = Tokenizer::Load(folder.path());
  ASSERT_TRUE(again.ok()) << again.status();
  const std::string text = "Hello<think> step<|extra|><|im_end|>世界";
  EXPECT_EQ(*(*again)->Encode(text, true), *tokenizer->Encode(text, true));
  EXPECT_EQ((*again)->TokenToId("<|extra|>"), tokenizer->additions().tokens[1].id);
  EXPECT_EQ((*again)->eos_token_id(), tokenizer->eos_token_id());
  const char* messages = R"([{"role": "user", "content": "Hi"}])";
  EXPECT_EQ(*(*again)->ApplyChatTemplate(messages, true), *tokenizer->ApplyChatTemplate(messages, true));
  EXPECT_EQ(*(*again)->Decode({(*again)->TokenToId("<|extra|>"), (*again)->TokenToId("<think>")}, true), "<think>");
}

}  // namespace
}  // namespace retort
