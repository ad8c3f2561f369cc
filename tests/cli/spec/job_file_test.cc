// What a job file names on disk.
#include "cli/spec/job_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "cli/spec/local_checks.h"
#include "tests/tiny_tokenizer.h"

namespace retort::cli {
namespace {

namespace fs = std::filesystem;

class JobFileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "job_file_test.XXXXXX").string();
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
    Write("job.yaml", R"(name: j
dataset:
  - {path: data/train.jsonl}
student:
  model_name_or_path: model
  lora: {r: 8}
)");
    Write("data/train.jsonl",
          R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})"
          "\n\n"
          R"({"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]})"
          "\n");
    Write("model/config.json", "{}");
    Write("model/tokenizer.json", kTinyTokenizer);
    Write("model/tokenizer_config.json", kTinyTokenizerConfig);
    WriteSafetensors("model/model.safetensors", R"({"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})", 24);
  }
  void TearDown() override { fs::remove_all(folder_); }

  void Write(const std::string& path, const std::string& text) {
    fs::create_directories((folder_ / path).parent_path());
    std::ofstream(folder_ / path, std::ios::binary) << text;
  }
  void WriteSafetensors(const std::string& path, const std::string& header, size_t data_bytes) {
    std::string text(8, '\0');
    for (int i = 0; i < 8; ++i) text[i] = static_cast<char>(header.size() >> (8 * i));
    Write(path, text + header + std::string(data_bytes, '\0'));
  }

  // Messages with the test's folder written as DIR.
  std::string Errors(const std::vector<std::string>& sets = {}, JobFile* file = nullptr, bool check_models = true) {
    Diagnostics diagnostics;
    JobFile loaded = LoadJobFile(
        {.path = (folder_ / "job.yaml").string(), .sets = sets, .working_dir = "/where", .check_models = check_models},
        &diagnostics);
    if (file != nullptr) *file = loaded;
    return absl::StrReplaceAll(diagnostics.ToString(), {{folder_.string(), "DIR"}});
  }

  fs::path folder_;
};

TEST_F(JobFileTest, ResolvesPathsAndInfersFormat) {
  JobFile file;
  ASSERT_EQ(Errors({}, &file), "");
  EXPECT_EQ(file.spec.dataset(0).path(), (folder_ / "data/train.jsonl").string());
  EXPECT_EQ(file.spec.dataset(0).format(), v1::DATASET_FORMAT_MESSAGES);
  EXPECT_EQ(file.spec.dataset(0).rows(), 2);
  EXPECT_EQ(file.spec.student().model_name_or_path(), (folder_ / "model").string());
  EXPECT_EQ(file.spec.output_dir(), "/where/out/j");
  ASSERT_EQ(Errors({"output_dir=here/x"}, &file), "");
  EXPECT_EQ(file.spec.output_dir(), "/where/here/x");
}

TEST_F(JobFileTest, TokenizedRows) {
  Write("data/train.jsonl", "{\"input_ids\": [1, 2], \"labels\": [-100, 2]}\n");
  JobFile file;
  ASSERT_EQ(Errors({}, &file), "");
  EXPECT_EQ(file.spec.dataset(0).format(), v1::DATASET_FORMAT_TOKENIZED);
}

TEST_F(JobFileTest, NoJobFile) {
  fs::remove(folder_ / "job.yaml");
  EXPECT_EQ(Errors(), "DIR/job.yaml: cannot be read: open DIR/job.yaml: No such file or directory\n");
}

TEST_F(JobFileTest, DataErrorsNameFileLineAndField) {
  const std::string where = "DIR/job.yaml:3:12: dataset.0.path: DIR/data/train.jsonl";
  const auto error_with = [&](const std::string& text) {
    Write("data/train.jsonl", text);
    return Errors();
  };
  EXPECT_EQ(error_with(""), where + " has no rows\n");
  EXPECT_THAT(error_with("{\"a\": 1}\n{\n"),
              testing::StartsWith(where + ":1: the row has columns a; wants messages, or prompt and"));
  EXPECT_THAT(error_with("{\n"), testing::StartsWith(where + ":1: not valid JSON"));
  EXPECT_EQ(error_with("[1]\n"), where + ":1: is number, wants an object\n");
  EXPECT_EQ(error_with("[{\"text\": \"a\"},\n {\"text\": 3}]\n"), where + ":2: text: wants a string\n");
  EXPECT_EQ(error_with(R"({"messages": [{"role": "user", "content": "a"}]})"),
            where + ":1: messages: the last turn must be the assistant's; it is what is trained\n");
  EXPECT_EQ(
      error_with(R"({"messages": [{"role": "bot", "content": "a"}]})"),
      where + ":1: messages.0.role: is \"bot\", wants one of system, developer, user, assistant, tool, function\n");
  EXPECT_EQ(error_with(R"({"messages": [{"role": "assistant", "content": 3}]})"),
            where + ":1: messages.0.content: wants a string\n");
  EXPECT_EQ(error_with("{\"input_ids\": [1, 2], \"labels\": [1]}"),
            where + ":1: labels: has 1 entries, input_ids has 2\n");
  EXPECT_EQ(error_with("{\"input_ids\": [1, -2], \"labels\": [1, 2]}"), where + ":1: input_ids.1: wants a token id\n");
  EXPECT_EQ(error_with("{\"input_ids\": [1], \"labels\": [1]}\n{\"messages\": []}"),
            where + ":2: input_ids: missing; the row has messages\n");
  fs::remove(folder_ / "data/train.jsonl");
  EXPECT_EQ(Errors(), where + " does not exist; wants a JSONL file of training rows\n");
}

TEST_F(JobFileTest, EveryKindOfRowIsToldFromItsColumns) {
  JobFile file;
  const auto format_of = [&](const std::string& row, const std::vector<std::string>& sets = {}) {
    Write("data/train.jsonl", row);
    EXPECT_EQ(Errors(sets, &file), "") << row;
    return file.spec.dataset(0).format();
  };
  EXPECT_EQ(format_of(R"({"prompt": "a ", "completion": "b"})"), v1::DATASET_FORMAT_PROMPT_COMPLETION);
  EXPECT_EQ(file.text.sample->input_ids, (std::vector<int32_t>{2, 3, 1}));
  EXPECT_EQ(format_of(R"([{"text": "a b"}])"), v1::DATASET_FORMAT_TEXT);
  EXPECT_EQ(format_of(R"({"input_ids": [7, 1]})"), v1::DATASET_FORMAT_TOKENIZED);
  EXPECT_EQ(file.text.sample->labels, (std::vector<int32_t>{7, 1}));
  EXPECT_EQ(format_of(R"({"q": "a", "r": "b"})",
                      {"dataset.0.prompt_template='c {} {r} '", "dataset.0.prompt_template_fields=q",
                       "student.training.completion_only_loss=true"}),
            v1::DATASET_FORMAT_COLUMNS);
  EXPECT_EQ(file.text.sample->input_ids, (std::vector<int32_t>{4, 2, 3, 1}));
  EXPECT_EQ(file.text.sample->labels, (std::vector<int32_t>{-100, -100, 3, 1}));
  EXPECT_EQ(SampleText(file.text, false), absl::StrCat("loss mask of ", (folder_ / "data/train.jsonl").string(),
                                                       ":1, 4 tokens, 2 trained [so]:\nc|a|[b][</s>]\n"));
}

TEST_F(JobFileTest, OptionsDecideWhatTheSampleTrains) {
  const std::string row = R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},)"
                          R"( {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]})";
  Write("data/train.jsonl", row);
  JobFile file;
  const auto mask = [&](const std::vector<std::string>& sets) {
    EXPECT_EQ(Errors(sets, &file), "");
    return file.text.sample.has_value() ? MaskText(file.text.sample->tokens, false) : "";
  };
  EXPECT_EQ(mask({}), "user|a|assistant|b|</s>|user|c|assistant|[d][</s>]");
  EXPECT_EQ(mask({"student.training.assistant_only_loss=true"}),
            "user|a|assistant|[b][</s>]user|c|assistant|[d][</s>]");
  EXPECT_EQ(mask({"student.training.completion_only_loss=false"}),
            "[user][a][assistant][b][</s>][user][c][assistant][d][</s>]");
  EXPECT_EQ(mask({"student.training.train_on_eos=false"}), "user|a|assistant|b|</s>|user|c|assistant|[d]</s>|");
}

TEST_F(JobFileTest, WhatCannotBeTrainedSoIsRefused) {
  const std::string where = "DIR/job.yaml:3:12: dataset.0.path: DIR/data/train.jsonl:1: ";
  const std::vector<std::string> assistant = {"student.training.assistant_only_loss=true"};
  const auto errors_of = [&](const std::string& row, const std::vector<std::string>& sets) {
    Write("data/train.jsonl", row);
    return Errors(sets);
  };
  for (const char* row : {R"({"text": "a"})", R"({"prompt": "a", "completion": "b"})", R"({"input_ids": [1]})"}) {
    EXPECT_THAT(errors_of(row, assistant), testing::StartsWith(where + "assistant_only_loss: needs conversations"));
  }
  EXPECT_THAT(errors_of(R"({"text": "a"})", {"student.training.completion_only_loss=true"}),
              testing::StartsWith(where + "completion_only_loss: a text has no completion"));
  const std::string row = R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})";
  Write("model/chat_template.jinja", "{% for m in messages %}{{ m.content }} {% endfor %}");
  EXPECT_THAT(errors_of(row, assistant),
              testing::StartsWith(where + "assistant_only_loss: needs a chat template with {% generation %}"));
  EXPECT_EQ(
      errors_of(row, {"dataset.0.prompt_template='{a}{'"}),
      "--set dataset.0.prompt_template='{a}{': dataset.0.prompt_template: a { without its }; write {{ for a brace\n");
  EXPECT_THAT(errors_of(row, {"dataset.0.prompt_template='{q}'"}),
              testing::StartsWith(where + "q: missing; the row has messages"));
  EXPECT_THAT(errors_of(row, {"dataset.0.prompt_template_fields=q"}),
              testing::HasSubstr("prompt_template_fields: does nothing without prompt_template"));
  EXPECT_THAT(errors_of(row, {"dataset.0.format=columns"}), testing::HasSubstr("columns needs a prompt_template"));
}

TEST_F(JobFileTest, TheExampleOfAddedTokensIsValid) {
  const char* root = std::getenv("RETORT_SOURCE_DIR");
  ASSERT_NE(root, nullptr);
  Diagnostics diagnostics;
  const JobFileOptions options = {
      .path = std::string(root) + "/examples/smollm2/think_tokens.yaml", .working_dir = "/", .check_models = false};
  const JobFile file = LoadJobFile(options, &diagnostics);
  EXPECT_EQ(diagnostics.ToString(), "");
  EXPECT_EQ(file.spec.dataset(0).format(), v1::DATASET_FORMAT_COLUMNS);
  EXPECT_EQ(file.spec.dataset(0).rows(), 8);
}

TEST_F(JobFileTest, AddedTokensAreLookedUp) {
  JobFile file;
  ASSERT_EQ(Errors({"student.add_tokens=['<think>', b]", "student.add_special_tokens='</s>'"}, &file), "");
  const auto& tokens = file.text.additions.tokens;
  ASSERT_EQ(tokens.size(), 3u);
  EXPECT_EQ(tokens[0].id, 8);
  EXPECT_FALSE(tokens[0].known);
  EXPECT_EQ(tokens[1].id, 3);
  EXPECT_TRUE(tokens[1].known);
  EXPECT_EQ(tokens[2].id, 1);
  EXPECT_EQ(file.text.additions.rows, 9);
  Write("a/adapter_config.json", "{\"r\": 8}");
  const std::vector<std::string> over = {"student.adapter_name_or_path=a", "student.lora=null",
                                         "student.add_tokens=['<think>']"};
  WriteSafetensors("a/adapter_model.safetensors", "{}", 0);
  EXPECT_THAT(Errors(over), testing::HasSubstr("student.add_tokens: the adapter that training starts from, DIR/a, has "
                                               "no embeddings of its own; tokens are added to a new adapter"));
  const std::string embeddings = R"("base_model.model.model.embed_tokens.weight")";
  WriteSafetensors("a/adapter_model.safetensors",
                   absl::StrCat("{", embeddings, R"(: {"dtype": "F32", "shape": [9, 1], "data_offsets": [0, 36]}})"),
                   36);
  EXPECT_EQ(Errors(over), "");
  EXPECT_THAT(Errors({"student.add_tokens='<think>,</think>'"}), testing::HasSubstr("holds a comma; write tokens as"));
  EXPECT_THAT(Errors({"student.add_tokens=['']"}), testing::HasSubstr("an empty text is no token"));
}

TEST_F(JobFileTest, PromptErrorsNameFileLineAndField) {
  Write("job.yaml", R"(name: j
prompts:
  - {path: p.jsonl, prompt_field: question}
teacher: {model: model}
curate: {verify: {kind: number}}
)");
  const std::string where = "DIR/job.yaml:3:12: prompts.0.path: DIR/p.jsonl";
  EXPECT_EQ(Errors(), where + " does not exist; wants a JSONL file of problems\n");
  Write("p.jsonl", "{\"question\": \"1+1\", \"answer\": 2}\n");
  EXPECT_EQ(Errors(), "");
  Write("p.jsonl", "{\"question\": \"1+1\", \"answer\": \"2\"}\n{\"problem\": \"x\"}\n");
  EXPECT_EQ(Errors(), where + ":2: question: missing; the row has problem; name the right one with prompt_field\n");
  Write("p.jsonl", "{\"question\": \"1+1\"}\n");
  EXPECT_EQ(Errors(), where + ":1: answer: missing, and a verifier needs it; name the right one with answer_field\n");
  EXPECT_EQ(Errors({"curate.verify.kind=none"}), "");
  Write("p.jsonl", "{\"question\": [1], \"answer\": \"2\"}\n");
  EXPECT_EQ(Errors(), where + ":1: question: is array, wants a string\n");
}

TEST_F(JobFileTest, ModelErrorsSayWhatIsExpected) {
  const std::string key = "DIR/job.yaml:5:23: student.model_name_or_path: ";
  const std::string wants = "wants a Hugging Face folder with config.json, tokenizer.json and *.safetensors\n";
  fs::remove(folder_ / "model/tokenizer.json");
  EXPECT_EQ(Errors(), key + "DIR/model has no tokenizer.json; " + wants);
  Write("ids.jsonl", R"({"input_ids": [1, 2], "labels": [-100, 2]})");
  EXPECT_EQ(Errors({"dataset.0.path=ids.jsonl"}), "") << "token ids need none";
  Write("model/tokenizer.json", "{}");
  fs::remove(folder_ / "model/model.safetensors");
  EXPECT_EQ(Errors(), key + "DIR/model has no *.safetensors file\n");
  WriteSafetensors("model/model.safetensors", R"({"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})", 23);
  EXPECT_EQ(Errors(),
            key + "DIR/model/model.safetensors: damaged: tensor \"w\" lies outside the file; is the file whole?\n");
  WriteSafetensors("model/model.safetensors", "nonsense", 0);
  EXPECT_EQ(Errors(), key + "DIR/model/model.safetensors: damaged: its header is not a JSON object\n");
  Write("model/model.safetensors", std::string(8, '\xff') + "{}");
  EXPECT_EQ(
      Errors(),
      key + "DIR/model/model.safetensors: damaged: its header says 18446744073709551615 bytes, the file has 10\n");
  EXPECT_EQ(Errors({"student.model_name_or_path=gone"}),
            absl::StrCat("--set student.model_name_or_path=gone: student.model_name_or_path: DIR/gone does not exist; ",
                         wants));
  EXPECT_EQ(Errors({"student.model_name_or_path=gone"}, nullptr, /*check_models=*/false), "");
}

TEST_F(JobFileTest, AdapterFolder) {
  const std::vector<std::string> set = {"student.adapter_name_or_path=a", "student.lora=null"};
  Write("a/adapter_config.json", "{\"r\": 8}");
  EXPECT_EQ(Errors(set),
            "--set student.adapter_name_or_path=a: student.adapter_name_or_path: DIR/a has no "
            "adapter_model.safetensors; wants a "
            "PEFT folder with adapter_config.json and adapter_model.safetensors\n");
  WriteSafetensors("a/adapter_model.safetensors", "{}", 0);
  EXPECT_EQ(Errors(set), "");
  const std::vector<std::string> both = {"student.adapter_name_or_path=a", "student.lora={r: 4, lora_alpha: 32}"};
  EXPECT_EQ(
      Errors(both),
      "--set student.lora={r: 4, lora_alpha: 32}: student.lora.r: 4 stands against 8 in DIR/a/adapter_config.json, "
      "where student.adapter_name_or_path starts; leave student.lora out to take what is there\n");
  Write("a/adapter_config.json", R"({"r": 4, "lora_alpha": 32.0, "lora_dropout": 0})");
  EXPECT_EQ(Errors(both), "");
}

}  // namespace
}  // namespace retort::cli
