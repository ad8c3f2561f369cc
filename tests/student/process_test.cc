// Real retort-student processes against a coordinator in this process: they are killed at chosen moments, and the
// adapter's bits must not care.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/hash.h"
#include "model/weights.h"
#include "student/checkpoint.h"
#include "student/setup.h"
#include "tests/student/fake_coordinator.h"

namespace retort {
namespace {

namespace fs = std::filesystem;
using ::retort::testing::FakeCoordinator;
using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kSteps = 20;

// 80 rows of token ids, of changing length.
std::string Rows() {
  std::string rows;
  for (int i = 0; i < 80; ++i) {
    absl::StrAppend(&rows, "{\"input_ids\": [1");
    for (int t = 0; t < 4 + i % 5; ++t) absl::StrAppend(&rows, ", ", (7 * i + 3 * t * t) % 60 + 2);
    absl::StrAppend(&rows, "]}\n");
  }
  return rows;
}

ModelConfig TinyConfig() {
  ModelConfig config;
  config.model_type = "llama";
  config.vocab_size = 64;
  config.hidden_size = 32;
  config.intermediate_size = 48;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 8;
  config.max_position_embeddings = 64;
  config.tie_word_embeddings = true;
  config.eos_token_ids = {0};
  return config;
}

ModelWeights TinyWeights() { return RandomWeights(TinyConfig(), c10::kFloat, c10::kCPU, 3); }

class ProcessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "student_process_test.XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
    fs::create_directories(root_ + "/cache");
    const absl::Status saved = SaveModelFolder(TinyWeights(), c10::kFloat, "", root_ + "/model");
    ASSERT_TRUE(saved.ok()) << saved;
  }
  void TearDown() override {
    for (const auto& [task_id, pid] : running_) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
    }
    fs::remove_all(root_);
  }

  v1::GetTaskResponse Task() {
    v1::GetTaskResponse task;
    task.set_job_id("j");
    v1::TrainTask& train = *task.mutable_train();
    train.set_manifest_sha256("m");
    v1::DatasetSource& source = *train.add_dataset();
    source.set_path("rows.jsonl");
    *source.mutable_file() = coordinator_->Put(Rows());
    source.set_weight(1.0);
    v1::StudentSpec& student = *train.mutable_student();
    student.set_model_name_or_path(root_ + "/model");
    student.set_device("cpu");
    student.mutable_lora()->set_r(4);
    student.mutable_lora()->set_lora_alpha(8);
    student.mutable_lora()->set_lora_dropout(0.1);
    student.mutable_lora()->add_target_modules("all-linear");
    v1::TrainingSpec& training = *student.mutable_training();
    training.set_per_device_train_batch_size(2);
    training.set_gradient_accumulation_steps(4);
    training.set_learning_rate(0.01);
    training.set_lr_scheduler_type(v1::LR_SCHEDULER_TYPE_COSINE);
    training.set_warmup_ratio(0.1);
    training.set_num_train_epochs(2);
    training.set_max_grad_norm(1.0);
    training.set_seed(42);
    training.set_shuffle(true);
    training.set_adam_beta1(0.9);
    training.set_adam_beta2(0.999);
    training.set_adam_epsilon(1e-8);
    training.set_logging_steps(1);
    training.set_save_steps(6);
    return task;
  }

  // Starts a rank's process; `fault` as RETORT_FAULT.
  void Start(const std::string& task_id, const std::string& fault = "") {
    const uint64_t epoch = coordinator_->Place(task_id);
    const std::string work_dir = absl::StrCat(root_, "/", task_id, ".", epoch);
    fs::create_directories(work_dir);
    const char* bin = std::getenv("RETORT_BIN_DIR");
    RETORT_CHECK(bin != nullptr);
    const std::vector<std::string> arguments = {absl::StrCat(bin, "/retort-student"),
                                                "task",
                                                "--coordinator",
                                                coordinator_->address(),
                                                "--task-id",
                                                task_id,
                                                "--epoch",
                                                absl::StrCat(epoch),
                                                "--work-dir",
                                                work_dir,
                                                "--cache-dir",
                                                root_ + "/cache",
                                                "--token-file",
                                                coordinator_->token_file(),
                                                "--threads",
                                                "1"};
    std::vector<char*> argv;
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    const pid_t pid = ::fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      if (!fault.empty()) ::setenv("RETORT_FAULT", fault.c_str(), 1);
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    running_[task_id] = pid;
  }

  // Waits until a rank's process ends; its wait status.
  int AwaitEnd(const std::string& task_id) {
    const absl::Time deadline = absl::Now() + absl::Seconds(60);
    int status = -1;
    while (::waitpid(running_.at(task_id), &status, WNOHANG) == 0) {
      if (absl::Now() > deadline) {
        ADD_FAILURE() << task_id << " does not end";
        return -1;
      }
      absl::SleepFor(absl::Milliseconds(5));
    }
    running_.erase(task_id);
    return status;
  }

  void AwaitKilled(const std::string& task_id) {
    const int status = AwaitEnd(task_id);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << task_id << " status " << status;
  }

  void AwaitDone() {
    while (!running_.empty()) {
      const std::string task_id = running_.begin()->first;
      EXPECT_EQ(AwaitEnd(task_id), 0) << task_id;
    }
  }

  void NewCoordinator() {
    coordinator_ = std::make_unique<FakeCoordinator>(root_);
    coordinator_->SetTask(Task());
  }

  // The adapter's hash, after checking all that comes with it.
  std::string Result() {
    const FakeCoordinator::Outcome outcome = coordinator_->outcome();
    EXPECT_THAT(outcome.failures, ::testing::IsEmpty());
    const auto found = outcome.results.find("j.train.0.0");
    if (found == outcome.results.end()) {
      ADD_FAILURE() << "the first rank has no result";
      return "";
    }
    const v1::TaskResult& result = found->second;
    EXPECT_EQ(result.outcomes().counts().at("kept"), 80);
    EXPECT_EQ(result.final_checkpoint().step(), kSteps);
    EXPECT_EQ(outcome.losses.size(), static_cast<size_t>(kSteps));
    EXPECT_EQ(result.final_checkpoint().losses_size(), kSteps);
    EXPECT_EQ(result.artifacts_size(), 1);
    const std::string adapter = coordinator_->FileOf(result.artifacts(0).artifact_id(), kAdapterWeightsFile);
    EXPECT_EQ(Sha256Hex(adapter), result.adapter_sha256());
    EXPECT_EQ(coordinator_->FileOf(result.final_checkpoint().artifact_id(), kAdapterWeightsFile), adapter);
    EXPECT_EQ(result.versions().count("student_revision"), 1u);
    return result.adapter_sha256();
  }

  // What one undisturbed rank gives; the same for every test.
  std::string Undisturbed() {
    static std::string sha256;
    if (sha256.empty()) {
      NewCoordinator();
      Start("j.train.0.0");
      AwaitDone();
      const auto losses = coordinator_->outcome().losses;
      EXPECT_LT(losses.at(kSteps).loss(), losses.at(1).loss());
      sha256 = Result();
    }
    return sha256;
  }

  std::string root_;
  std::unique_ptr<FakeCoordinator> coordinator_;
  std::map<std::string, pid_t> running_;
};

TEST_F(ProcessTest, TheAdapterHasTheSameBitsOnOneTwoAndThreeRanks) {
  const std::string alone = Undisturbed();
  for (int ranks = 2; ranks <= 3; ++ranks) {
    NewCoordinator();
    for (int i = 0; i < ranks; ++i) coordinator_->Place(absl::StrCat("j.train.0.", i));
    for (int i = 0; i < ranks; ++i) Start(absl::StrCat("j.train.0.", i));
    AwaitDone();
    EXPECT_EQ(Result(), alone) << ranks << " ranks";
    EXPECT_THAT(coordinator_->outcome().gang_sizes, ElementsAre(ranks));
  }
}

// Ranks die between two steps, while a step is exchanged, after it and before it was applied, and while the last
// checkpoint is made durable; each is started again while the others wait with what they have.
TEST_F(ProcessTest, KilledRanksDoNotChangeTheResult) {
  const std::string alone = Undisturbed();
  NewCoordinator();
  for (int i = 0; i < 3; ++i) coordinator_->Place(absl::StrCat("j.train.0.", i));
  Start("j.train.0.0", "student.checkpoint_written:2");
  Start("j.train.0.1", "student.before_apply:4");
  Start("j.train.0.2", "student.before_exchange:9");
  AwaitKilled("j.train.0.1");
  Start("j.train.0.1", "student.after_step:12");
  AwaitKilled("j.train.0.2");
  Start("j.train.0.2");
  AwaitKilled("j.train.0.0");
  Start("j.train.0.0", "student.before_final_barrier:1");
  AwaitKilled("j.train.0.1");
  Start("j.train.0.1");
  AwaitKilled("j.train.0.0");
  Start("j.train.0.0");
  AwaitDone();
  EXPECT_EQ(Result(), alone);
}

TEST_F(ProcessTest, WhenAllDieTrainingGoesOnFromTheCheckpointWithAnotherNumberOfRanks) {
  const std::string alone = Undisturbed();
  NewCoordinator();
  for (int i = 0; i < 2; ++i) coordinator_->Place(absl::StrCat("j.train.0.", i));
  // A second at the twelfth step, in which the checkpoint of the sixth is registered.
  Start("j.train.0.0", "student.before_exchange:12:1000");
  Start("j.train.0.1", "student.before_apply:15");
  AwaitKilled("j.train.0.1");
  ::kill(running_.at("j.train.0.0"), SIGKILL);
  AwaitKilled("j.train.0.0");
  EXPECT_GE(coordinator_->outcome().checkpoint.step(), 6);
  for (int i = 0; i < 3; ++i) coordinator_->Place(absl::StrCat("j.train.0.", i));
  for (int i = 0; i < 3; ++i) Start(absl::StrCat("j.train.0.", i));
  AwaitDone();
  EXPECT_EQ(Result(), alone);
}

TEST_F(ProcessTest, ARankThatComesLaterJoinsAtAStepBoundary) {
  const std::string alone = Undisturbed();
  NewCoordinator();
  // Time at the fifth step, in which the second rank is placed, and at the sixth, in which the first hears of it.
  Start("j.train.0.0", "student.before_exchange:5:2000,student.before_exchange:6:1000");
  ASSERT_TRUE(coordinator_->AwaitSteps(4, absl::Seconds(30)));
  Start("j.train.0.1");
  AwaitDone();
  EXPECT_EQ(Result(), alone);
  EXPECT_THAT(coordinator_->outcome().gang_sizes, ElementsAre(1, 2));
}

TEST_F(ProcessTest, StartsFromAnAdapterThatAgreesWithTheJob) {
  NewCoordinator();
  v1::GetTaskResponse task = Task();
  v1::StudentSpec& student = *task.mutable_train()->mutable_student();
  const auto made = InitialAdapter(student, TinyWeights());
  ASSERT_TRUE(made.ok()) << made.status();
  const std::string folder = root_ + "/start";
  fs::create_directories(folder);
  ASSERT_TRUE(SaveAdapter(*made, folder).ok());
  student.set_adapter_name_or_path(folder);
  EXPECT_TRUE(InitialAdapter(student, TinyWeights()).ok());
  coordinator_->SetTask(task);
  Start("j.train.0.0");
  AwaitDone();
  Result();
  EXPECT_EQ(coordinator_->outcome().results["j.train.0.0"].versions().at("start_adapter_sha256"),
            Sha256HexOfFile(absl::StrCat(folder, "/", kAdapterWeightsFile)).value());

  const auto refused = [&](const std::function<void(v1::LoraSpec*)>& change) {
    v1::StudentSpec other = student;
    change(other.mutable_lora());
    const absl::Status status = InitialAdapter(other, TinyWeights()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_EQ(refused([](v1::LoraSpec* lora) { lora->set_r(8); }),
            absl::StrCat("student.lora.r: 8 stands against 4 in ", folder,
                         " (student.adapter_name_or_path), where training would start; leave student.lora out to take "
                         "what is there"));
  EXPECT_THAT(refused([](v1::LoraSpec* lora) { lora->set_lora_alpha(9); }), HasSubstr("lora_alpha: 9 "));
  EXPECT_THAT(refused([](v1::LoraSpec* lora) { lora->set_lora_dropout(0); }), HasSubstr("lora_dropout: 0 "));
  EXPECT_THAT(refused([](v1::LoraSpec* lora) { lora->set_target_modules(0, "q_proj"); }),
              HasSubstr("target_modules: q_proj stands against "));
  student.clear_lora();
  EXPECT_TRUE(InitialAdapter(student, TinyWeights()).ok());
}

TEST_F(ProcessTest, WhatTheUserHasToMendIsSaidPlainly) {
  NewCoordinator();
  v1::GetTaskResponse task = Task();
  task.mutable_train()->mutable_student()->mutable_training()->set_max_length(2);
  coordinator_->SetTask(task);
  Start("j.train.0.0");
  EXPECT_EQ(WEXITSTATUS(AwaitEnd("j.train.0.0")), 1);
  std::string failure = coordinator_->outcome().failures["j.train.0.0"];
  EXPECT_THAT(failure, HasSubstr("FAILURE_CAUSE_USER_ERROR"));
  EXPECT_THAT(failure, HasSubstr("80 are longer than student.training.max_length"));

  task = Task();
  task.mutable_train()->mutable_student()->set_model_name_or_path(root_ + "/nowhere");
  coordinator_->SetTask(task);
  Start("j.train.0.0");
  EXPECT_EQ(WEXITSTATUS(AwaitEnd("j.train.0.0")), 1);
  EXPECT_THAT(coordinator_->outcome().failures["j.train.0.0"], HasSubstr("/nowhere"));
}

TEST_F(ProcessTest, ExportGivesTheAdapterAndAMergedModel) {
  NewCoordinator();
  Start("j.train.0.0");
  AwaitDone();
  const std::string sha256 = Result();
  v1::GetTaskResponse task;
  v1::ExportTask& exported = *task.mutable_export_();
  *exported.mutable_student() = Task().train().student();
  exported.mutable_export_()->set_adapter(true);
  exported.mutable_export_()->set_merged("bf16");
  *exported.mutable_final_checkpoint() = coordinator_->outcome().checkpoint;
  coordinator_->SetTask(task);
  Start("j.export.0.0");
  AwaitDone();
  const v1::TaskResult result = coordinator_->outcome().results["j.export.0.0"];
  EXPECT_EQ(result.adapter_sha256(), sha256);
  ASSERT_EQ(result.artifacts_size(), 2);
  EXPECT_EQ(result.artifacts(0).name(), "adapter");
  EXPECT_EQ(result.artifacts(1).name(), "merged");
  EXPECT_THAT(coordinator_->FileOf(result.artifacts(1).artifact_id(), "config.json"), HasSubstr("bfloat16"));
  EXPECT_THAT(coordinator_->FileOf(result.artifacts(1).artifact_id(), "model.safetensors"), Not(::testing::IsEmpty()));
}

}  // namespace
}  // namespace retort
