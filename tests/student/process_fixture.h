// Real retort-student processes against a coordinator in this process.
#pragma once

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

namespace fs = std::filesystem;
using ::retort::testing::FakeCoordinator;

inline constexpr int64_t kSteps = 20;

// 80 rows of token ids, of changing length.
inline std::string Rows() {
  std::string rows;
  for (int i = 0; i < 80; ++i) {
    absl::StrAppend(&rows, "{\"input_ids\": [1");
    for (int t = 0; t < 4 + i % 5; ++t) absl::StrAppend(&rows, ", ", (7 * i + 3 * t * t) % 60 + 2);
    absl::StrAppend(&rows, "]}\n");
  }
  return rows;
}

inline ModelConfig TinyConfig() {
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

inline ModelWeights TinyWeights() { return RandomWeights(TinyConfig(), c10::kFloat, c10::kCPU, 3); }

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

}  // namespace retort
