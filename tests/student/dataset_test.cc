#include "student/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "student/file_lock.h"

namespace retort {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kAll = std::numeric_limits<int64_t>::max();

class DatasetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "dataset_test.XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    options_.vocab_size = 100;
    options_.threads = 3;
  }
  void TearDown() override { fs::remove_all(root_); }

  std::string Write(const std::string& text) {
    const std::string path = root_ + "/rows.jsonl";
    std::ofstream(path) << text;
    return path;
  }
  absl::StatusOr<Dataset> Read(const std::string& text, int64_t max_length = 10, int64_t limit = kAll,
                               v1::DatasetFormat format = v1::DATASET_FORMAT_UNSPECIFIED) {
    DatasetBuilder builder(max_length);
    v1::DatasetSource source;
    source.set_path("data/rows.jsonl");
    source.set_format(format);
    const absl::Status status = AddRows(Write(text), source, limit, nullptr, options_, builder);
    if (!status.ok()) return status;
    return std::move(builder).Build();
  }

  std::string root_;
  DatasetOptions options_;
};

constexpr char kRows[] = R"({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
{"input_ids": [4, 5], "labels": [4, -100]}

{"input_ids": [6, 7, 8, 9], "labels": [6, 7, 8, 9]}
{"input_ids": [1, 1], "labels": [-100, 1]}
)";

TEST_F(DatasetTest, KeepsOrderAndCountsEveryRowThatIsDropped) {
  const auto dataset = Read(kRows, 3);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->size(), 2);
  EXPECT_EQ(dataset->counts().kept, 2);
  EXPECT_EQ(dataset->counts().over_long, 1);
  EXPECT_EQ(dataset->counts().nothing_to_train, 1);  // the first label of a sample has nothing before it
  EXPECT_THAT(dataset->input_ids(0), ElementsAre(1, 2, 3));
  EXPECT_THAT(dataset->labels(0), ElementsAre(-100, 2, 3));
  EXPECT_THAT(dataset->input_ids(1), ElementsAre(1, 1));
  EXPECT_EQ(dataset->trained_tokens(0), 2);
  EXPECT_EQ(dataset->trained_tokens(1), 1);
}

TEST_F(DatasetTest, PositionsThatReturnToZeroBeginANewSequence) {
  const auto dataset = Read(R"({"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}
{"input_ids": [4, 5, 6, 7, 8], "labels": [4, 5, 6, 7, 8], "position_ids": [0, 1, 0, 1, 2]}
{"input_ids": [9, 9], "labels": [9, 9], "position_ids": [0, 0]}
{"input_ids": [1, 2], "position_ids": [0, 1]}
)");
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->counts().nothing_to_train, 1) << "nothing predicts a sequence's first token";
  ASSERT_EQ(dataset->size(), 3);
  EXPECT_THAT(dataset->sequence_starts(0), ElementsAre(0));
  EXPECT_THAT(dataset->sequence_starts(1), ElementsAre(0, 2));
  EXPECT_THAT(dataset->sequence_starts(2), ElementsAre(0));
  EXPECT_EQ(dataset->trained_tokens(1), 3);
  const std::string path = root_ + "/kept.safetensors";
  ASSERT_TRUE(dataset->SaveTo(path).ok());
  EXPECT_THAT(Dataset::LoadFrom(path)->sequence_starts(1), ElementsAre(0, 2));
  const auto status = Read(R"({"input_ids": [1, 2], "labels": [1, 2]}
{"input_ids": [1, 2, 3], "labels": [1, 2, 3], "position_ids": [0, 1, 3]}
)")
                          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("data/rows.jsonl:2: position_ids[2]"));
}

TEST_F(DatasetTest, ManyRowsOnSeveralThreadsStayInOrder) {
  std::string text;
  for (int i = 0; i < 10'000; ++i) absl::StrAppend(&text, R"({"input_ids": [)", i % 100, ", ", i / 100, "]}\n");
  const auto dataset = Read(text);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  ASSERT_EQ(dataset->size(), 10'000);
  for (int i = 0; i < 10'000; ++i) ASSERT_THAT(dataset->input_ids(i), ElementsAre(i % 100, i / 100));
}

TEST_F(DatasetTest, TakesTheFirstRowsUpToTheLimit) {
  const auto dataset = Read(kRows, 10, 1);
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->size(), 1);
}

TEST_F(DatasetTest, ErrorsNameTheUsersFileAndLine) {
  absl::Status status = Read("{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 100]}\n").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("data/rows.jsonl:2"));
  status = Read("{\"input_ids\": [1, 2]}\nnonsense\n").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("data/rows.jsonl:2"));
  EXPECT_THAT(status.message(), ::testing::Not(HasSubstr(root_)));
  status = Read("{\"x\": \"x\"}\n").status();
  EXPECT_THAT(std::string(status.message()), HasSubstr("data/rows.jsonl:1: the row has columns x; wants messages, or"));
  status = Read("{\"messages\": []}\n").status();
  EXPECT_THAT(status.message(), HasSubstr("tokenizer"));
}

// A token is a byte; 0 ends a turn.
class ByteTokenizer final : public Tokenizer {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, bool) const override {
    return std::vector<int32_t>(text.begin(), text.end());
  }
  absl::StatusOr<std::string> Decode(const std::vector<int32_t>& ids, bool) const override {
    return std::string(ids.begin(), ids.end());
  }
  absl::StatusOr<std::string> ApplyChatTemplate(absl::string_view messages_json, bool) const override {
    std::string text;
    for (const auto& message : nlohmann::json::parse(messages_json)) text += message["content"].get<std::string>();
    return text;
  }
  int64_t vocab_size() const override { return 128; }
  int32_t TokenToId(absl::string_view) const override { return -1; }
  int32_t eos_token_id() const override { return 0; }
};

TEST_F(DatasetTest, ATokenThatTheModelDoesNotHaveIsAnErrorOfItsRow) {
  options_.vocab_size = 'd';
  const std::string path =
      Write(R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})"
            "\n"
            R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "d"}]})"
            "\n");
  DatasetBuilder builder(10);
  const ByteTokenizer tokenizer;
  v1::DatasetSource source;
  source.set_path("data/rows.jsonl");
  const absl::Status status = AddRows(path, source, kAll, &tokenizer, options_, builder);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("data/rows.jsonl:2: holds d, which the tokenizer makes token 100"));
  EXPECT_THAT(status.message(), HasSubstr("the model has only 100"));
}

TEST_F(DatasetTest, RowsOfATemplateThatPrintsTheDateAreKeptByDate) {
  options_.tokenizer_folder = root_;
  v1::DatasetSource source;
  source.mutable_file()->set_sha256("rows");
  const auto keys_at = [&](int64_t seconds) {
    options_.now = absl::FromUnixSeconds(seconds);
    return DatasetCacheKey({source}, options_).value();
  };
  std::ofstream(root_ + "/chat_template.jinja") << "{{ messages[0].content }}";
  EXPECT_EQ(keys_at(1), keys_at(2));  // another job uses what this one tokenized
  std::ofstream(root_ + "/chat_template.jinja") << "{{ strftime_now('%d') }}{{ messages[0].content }}";
  EXPECT_NE(keys_at(1), keys_at(2));
  EXPECT_EQ(keys_at(1), keys_at(1));
}

TEST_F(DatasetTest, WhatDecidesTheLabelsIsPartOfTheCachesKey) {
  options_.tokenizer_folder = root_;
  v1::DatasetSource source;
  source.mutable_file()->set_sha256("rows");
  std::set<std::string> keys;
  const auto add = [&] { return keys.insert(DatasetCacheKey({source}, options_).value()).second; };
  EXPECT_TRUE(add());
  EXPECT_FALSE(add());
  options_.training.set_completion_only_loss(false);
  EXPECT_TRUE(add());
  options_.training.set_completion_only_loss(true);
  EXPECT_TRUE(add());
  options_.training.set_assistant_only_loss(true);
  EXPECT_TRUE(add());
  options_.training.set_train_on_eos(true);
  EXPECT_FALSE(add()) << "the default";
  options_.training.set_train_on_eos(false);
  EXPECT_TRUE(add());
  source.set_prompt_template("{}");
  EXPECT_TRUE(add());
  source.add_prompt_template_fields("q");
  EXPECT_TRUE(add());
  options_.add_tokens = {"<think>"};
  EXPECT_TRUE(add());
  options_.add_special_tokens.swap(options_.add_tokens);
  EXPECT_TRUE(add());
}

TEST_F(DatasetTest, WaitsForWhoHoldsTheLockAndSaysSo) {
  const std::string path = root_ + "/rows.lock";
  auto held = LockFile(path, nullptr);
  ASSERT_TRUE(held.ok()) << held.status();
  int told = 0;
  const auto got = LockFile(path, [&](absl::Duration) {
    ++told;
    *held = UniqueFd();  // as when its holder dies
  });
  EXPECT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(told, 1);
}

TEST_F(DatasetTest, AFileOfTokenizedRowsComesBackAndDamageIsFound) {
  const auto dataset = Read(kRows, 3);
  ASSERT_TRUE(dataset.ok());
  const std::string path = root_ + "/rows.safetensors";
  ASSERT_TRUE(dataset->SaveTo(path).ok());
  const auto loaded = Dataset::LoadFrom(path);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->size(), 2);
  EXPECT_EQ(loaded->counts().over_long, 1);
  EXPECT_EQ(loaded->counts().nothing_to_train, 1);
  EXPECT_THAT(loaded->input_ids(1), ElementsAre(1, 1));
  EXPECT_EQ(loaded->trained_tokens(0), 2);

  std::string bytes = *ReadFile(path);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  ASSERT_TRUE(WriteFileAtomically(path, bytes).ok());
  EXPECT_EQ(Dataset::LoadFrom(path).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(DatasetTest, AnEmptyFileIsAnEmptyDataset) {
  const auto dataset = Read("");
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->size(), 0);
}

}  // namespace
}  // namespace retort
