// Jobs over every kind of row, and jobs that add tokens.
#include <nlohmann/json.hpp>

#include "common/file.h"
#include "model/lora.h"
#include "model/tokenizer.h"
#include "model/vocabulary.h"
#include "tests/student/process_fixture.h"
#include "tests/tiny_tokenizer.h"

namespace retort {
namespace {

using ::testing::HasSubstr;

class TextProcessTest : public ProcessTest {
 protected:
  void SetUp() override {
    ProcessTest::SetUp();
    WriteTokenizer(root_ + "/model");
    NewCoordinator();
  }

  static void WriteTokenizer(const std::string& folder) {
    ASSERT_TRUE(WriteFileAtomically(folder + "/tokenizer.json", kTinyTokenizer).ok());
    ASSERT_TRUE(WriteFileAtomically(folder + "/tokenizer_config.json", kTinyTokenizerConfig).ok());
  }

  // A model whose vocabulary is the tokenizer's.
  std::string SmallModel(bool tied) {
    ModelConfig config = TinyConfig();
    config.vocab_size = 8;
    config.tie_word_embeddings = tied;
    const std::string folder = absl::StrCat(root_, "/small", tied);
    EXPECT_TRUE(SaveModelFolder(RandomWeights(config, c10::kFloat, c10::kCPU, 5), c10::kFloat, "", folder).ok());
    WriteTokenizer(folder);
    return folder;
  }

  v1::GetTaskResponse TaskOver(const std::string& rows) {
    v1::GetTaskResponse task = Task();
    task.mutable_train()->mutable_student()->mutable_training()->set_max_steps(2);
    v1::DatasetSource& source = *task.mutable_train()->mutable_dataset(0);
    source.set_path("rows.jsonl");
    *source.mutable_file() = coordinator_->Put(rows);
    return task;
  }

  // The adapter's hash.
  std::string Train(const v1::GetTaskResponse& task) {
    NewCoordinator();
    v1::GetTaskResponse mine = task;
    for (int i = 0; i < mine.train().dataset_size(); ++i) {
      *mine.mutable_train()->mutable_dataset(i)->mutable_file() = coordinator_->Put(rows_);
    }
    coordinator_->SetTask(mine);
    Start("j.train.0.0");
    AwaitDone();
    const FakeCoordinator::Outcome outcome = coordinator_->outcome();
    EXPECT_THAT(outcome.failures, ::testing::IsEmpty());
    const auto found = outcome.results.find("j.train.0.0");
    return found == outcome.results.end() ? "" : found->second.adapter_sha256();
  }

  std::string TrainRows(const std::string& rows, const std::function<void(v1::TrainTask*)>& change = nullptr) {
    rows_ = rows;
    v1::GetTaskResponse task = TaskOver(rows);
    if (change) change(task.mutable_train());
    return Train(task);
  }

  // What the job under way has put into the store, as a folder.
  std::string Fetched(const std::string& artifact_id, const std::vector<std::string>& files, const std::string& name) {
    const std::string folder = absl::StrCat(root_, "/", name);
    fs::create_directories(folder);
    for (const std::string& file : files) {
      const std::string contents = coordinator_->FileOf(artifact_id, file);
      EXPECT_FALSE(contents.empty()) << file;
      EXPECT_TRUE(WriteFileAtomically(absl::StrCat(folder, "/", file), contents).ok());
    }
    return folder;
  }

  std::string rows_;
};

// The same ids and labels train the same bits, whatever row they came from.
TEST_F(TextProcessTest, EveryKindOfRowTrainsWhatItSays) {
  const std::string conversation =
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]})";
  const std::string last = TrainRows(R"({"input_ids": [6, 2, 7, 3, 4, 1], "labels": [-100, -100, -100, 3, 4, 1]})");
  const std::string all = TrainRows(R"({"input_ids": [6, 2, 7, 3, 4, 1]})");
  const std::string without_eos =
      TrainRows(R"({"input_ids": [6, 2, 7, 3, 4, 1], "labels": [-100, -100, -100, 3, 4, -100]})");
  ASSERT_NE(last, "");
  ASSERT_NE(last, all);
  ASSERT_NE(last, without_eos);
  EXPECT_EQ(TrainRows(conversation), last);
  EXPECT_EQ(TrainRows("[" + conversation + "]"), last);
  EXPECT_EQ(TrainRows(R"({"prompt": [{"role": "user", "content": "a"}],)"
                      R"( "completion": [{"role": "assistant", "content": "b c"}]})"),
            last);
  EXPECT_EQ(TrainRows(R"({"prompt": "user a assistant ", "completion": "b c "})"), last);
  EXPECT_EQ(TrainRows(R"({"text": "user a assistant b c"})"), all);
  const auto training = [](const std::function<void(v1::TrainingSpec*)>& change) {
    return [change](v1::TrainTask* task) { change(task->mutable_student()->mutable_training()); };
  };
  EXPECT_EQ(TrainRows(conversation, training([](auto* spec) { spec->set_assistant_only_loss(true); })), last);
  EXPECT_EQ(TrainRows(conversation, training([](auto* spec) { spec->set_completion_only_loss(false); })), all);
  EXPECT_EQ(TrainRows(conversation, training([](auto* spec) { spec->set_train_on_eos(false); })), without_eos);
  const auto columns = [](bool completion_only) {
    return [completion_only](v1::TrainTask* task) {
      v1::DatasetSource* source = task->mutable_dataset(0);
      source->set_prompt_template("user {} assistant {answer}");
      source->add_prompt_template_fields("question");
      if (completion_only) task->mutable_student()->mutable_training()->set_completion_only_loss(true);
    };
  };
  const std::string row = R"({"question": "a", "answer": "b c", "input_ids": "beside"})";
  EXPECT_EQ(TrainRows(row, columns(false)), all);
  EXPECT_EQ(TrainRows(row, columns(true)), last);
}

class AddedTokensTest : public TextProcessTest, public ::testing::WithParamInterface<bool> {};

TEST_P(AddedTokensTest, AreTrainedSavedAndMerged) {
  const std::string row =
      R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think> b </think> c"}]})";
  const bool tied = GetParam();
  const std::string model = SmallModel(tied);
  const auto adds = [&](v1::TrainTask* task) {
    v1::StudentSpec* student = task->mutable_student();
    student->set_model_name_or_path(model);
    for (const char* token : {"<think>", "</think>", "b"}) student->add_add_tokens(token);
    student->mutable_training()->set_save_steps(1);
  };
  const std::string sha256 = TrainRows(row, adds);
  ASSERT_NE(sha256, "");
  const v1::TaskResult result = coordinator_->outcome().results["j.train.0.0"];
  const std::vector<std::string> files = {kAdapterConfigFile, kAdapterWeightsFile, "tokenizer.json",
                                          "tokenizer_config.json", "chat_template.jinja"};
  const std::string adapter_folder = Fetched(result.artifacts(0).artifact_id(), files, absl::StrCat("adapter", tied));
  Fetched(result.final_checkpoint().artifact_id(), files, absl::StrCat("checkpoint", tied));
  const ModelConfig config = LoadModelConfig(model).value();
  const LoraAdapter adapter = LoadAdapter(adapter_folder, config).value();
  EXPECT_EQ(adapter.full.size(), tied ? 1u : 2u);
  EXPECT_EQ(VocabularyUnder(adapter, config), 10);
  const auto tokenizer = Tokenizer::Load(adapter_folder);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->TokenToId("</think>"), 9);

  // Ranks that die and come again, several of them, change nothing.
  NewCoordinator();
  v1::GetTaskResponse task = TaskOver(row);
  adds(task.mutable_train());
  coordinator_->SetTask(task);
  for (int i = 0; i < 2; ++i) coordinator_->Place(absl::StrCat("j.train.0.", i));
  Start("j.train.0.0", "student.before_exchange:2:1000");
  Start("j.train.0.1", "student.before_apply:2");
  AwaitKilled("j.train.0.1");
  ::kill(running_.at("j.train.0.0"), SIGKILL);
  AwaitKilled("j.train.0.0");
  // Rank 0 may have come to the end of step 2 before it died.
  EXPECT_GE(coordinator_->outcome().checkpoint.step(), 1);
  EXPECT_LE(coordinator_->outcome().checkpoint.step(), 2);
  for (int i = 0; i < 2; ++i) coordinator_->Place(absl::StrCat("j.train.0.", i));
  for (int i = 0; i < 2; ++i) Start(absl::StrCat("j.train.0.", i));
  AwaitDone();
  EXPECT_EQ(coordinator_->outcome().results["j.train.0.0"].adapter_sha256(), sha256);

  v1::GetTaskResponse export_task;
  v1::ExportTask& exported = *export_task.mutable_export_();
  *exported.mutable_student() = task.train().student();
  exported.mutable_export_()->set_adapter(true);
  exported.mutable_export_()->set_merged("f32");
  *exported.mutable_final_checkpoint() = coordinator_->outcome().checkpoint;
  coordinator_->SetTask(export_task);
  Start("j.export.0.0");
  AwaitDone();
  const v1::TaskResult both = coordinator_->outcome().results["j.export.0.0"];
  ASSERT_EQ(both.artifacts_size(), 2);
  Fetched(both.artifacts(0).artifact_id(), files, absl::StrCat("again", tied));
  const std::string merged =
      Fetched(both.artifacts(1).artifact_id(),
              {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"},
              absl::StrCat("merged", tied));
  const ModelWeights weights = LoadWeights(merged, c10::kFloat, c10::kCPU).value();
  EXPECT_EQ(weights.config.vocab_size, 10);
  EXPECT_EQ(weights.config.tie_word_embeddings, tied);
  EXPECT_TRUE(weights.embed_tokens.equal(adapter.full.at("model.embed_tokens.weight")));

  // Training goes on from such an adapter, whose tokenizer has the tokens.
  const auto goes_on = [&](v1::TrainTask* other) {
    adds(other);
    other->mutable_student()->set_adapter_name_or_path(adapter_folder);
  };
  EXPECT_NE(TrainRows(row, goes_on), "");
  const auto tells = [&](v1::TrainTask* other) {
    goes_on(other);
    other->mutable_student()->add_add_tokens("<more>");
  };
  rows_ = row;
  task = TaskOver(row);
  tells(task.mutable_train());
  NewCoordinator();
  *task.mutable_train()->mutable_dataset(0)->mutable_file() = coordinator_->Put(row);
  coordinator_->SetTask(task);
  Start("j.train.0.0");
  EXPECT_EQ(WEXITSTATUS(AwaitEnd("j.train.0.0")), 1);
  EXPECT_THAT(coordinator_->outcome().failures["j.train.0.0"], HasSubstr("has 10 rows of embeddings"));
}

INSTANTIATE_TEST_SUITE_P(Tied, AddedTokensTest, ::testing::Bool());

}  // namespace
}  // namespace retort
