// Real retort-student processes are killed at chosen moments, and the adapter's bits must not care.
#include "tests/student/process_fixture.h"

namespace retort {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

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

TEST_F(ProcessTest, ExportGivesAGgufFileWithoutAMergedFolder) {
  NewCoordinator();
  v1::GetTaskResponse train = Task();
  v1::StudentSpec& student = *train.mutable_train()->mutable_student();
  student.set_model_name_or_path(absl::StrCat(std::getenv("RETORT_SOURCE_DIR"), "/examples/quickstart/base"));
  student.mutable_training()->set_max_steps(2);
  coordinator_->SetTask(train);
  Start("j.train.0.0");
  AwaitDone();
  v1::GetTaskResponse task;
  *task.mutable_export_()->mutable_student() = student;
  task.mutable_export_()->mutable_export_()->set_gguf("q8_0");
  *task.mutable_export_()->mutable_final_checkpoint() = coordinator_->outcome().checkpoint;
  coordinator_->SetTask(task);
  Start("j.export.0.0");
  AwaitDone();
  const v1::TaskResult result = coordinator_->outcome().results["j.export.0.0"];
  ASSERT_EQ(result.artifacts_size(), 1);
  EXPECT_EQ(result.artifacts(0).name(), "gguf");
  EXPECT_THAT(coordinator_->FileOf(result.artifacts(0).artifact_id(), "model-q8_0.gguf"), StartsWith("GGUF"));
}

}  // namespace
}  // namespace retort
