#include "coordinator/stages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/hash.h"
#include "tests/coordinator/harness.h"

namespace retort {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

internal::TaskRecord TaskOf(v1::Stage stage, int group, int replica) {
  internal::TaskRecord task;
  task.set_task_id(TaskId("full-abc123", stage, group, replica));
  task.set_stage(stage);
  task.set_group(group);
  task.set_replica(replica);
  return task;
}

internal::JobRecord FinishedTraining() {
  internal::JobRecord job;
  job.set_job_id("full-abc123");
  v1::JobArtifact& adapter = *job.mutable_result()->add_artifacts();
  adapter.set_name("adapter");
  adapter.set_artifact_id("adapter-id");
  job.mutable_final_checkpoint()->set_step(9);
  return job;
}

TEST(Stages, FollowTheSpec) {
  EXPECT_THAT(StagesOf(FullSpec()),
              ElementsAre(v1::STAGE_GENERATE, v1::STAGE_CURATE, v1::STAGE_TRAIN, v1::STAGE_EVALUATE, v1::STAGE_EXPORT));
  EXPECT_THAT(StagesOf(GenerateSpec(1, 1)), ElementsAre(v1::STAGE_GENERATE, v1::STAGE_CURATE));
  EXPECT_THAT(StagesOf(TrainSpec(1, 1)), ElementsAre(v1::STAGE_TRAIN));
}

TEST(Stages, RanksNeverOutnumberMicroBatches) {
  v1::JobSpec spec = TrainSpec(2, 64);
  EXPECT_EQ(GroupsOf(spec, v1::STAGE_TRAIN)[0].max, 4);
  EXPECT_EQ(GroupsOf(spec, v1::STAGE_TRAIN)[0].min, 2);
}

TEST(Stages, EvaluationHasOneTaskPerModelThenAJudge) {
  v1::JobSpec spec = FullSpec();
  auto groups = GroupsOf(spec, v1::STAGE_EVALUATE);
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[0].min, 3);
  EXPECT_THAT(groups[0].devices, ElementsAre(Device::kCpu, Device::kCpu, Device::kCpu));
  spec.mutable_teacher()->set_device("auto");
  spec.mutable_student()->set_device("cuda");
  EXPECT_THAT(GroupsOf(spec, v1::STAGE_EVALUATE)[0].devices, ElementsAre(Device::kCuda, Device::kAuto, Device::kCuda));
  spec.mutable_teacher()->set_backend(v1::TEACHER_BACKEND_OPENAI);
  EXPECT_EQ(GroupsOf(spec, v1::STAGE_EVALUATE)[0].devices[1], Device::kCpu);
  EXPECT_EQ(groups[1].role, "curate");
  spec.mutable_evaluate(0)->set_compare_base(false);
  spec.mutable_evaluate(0)->set_compare_teacher(false);
  groups = GroupsOf(spec, v1::STAGE_EVALUATE);
  EXPECT_EQ(groups[0].min, 1);
}

TEST(Stages, SampleSetsHaveNamesOfTheirOwn) {
  EXPECT_THAT(SampleSetIdsOf(FullSpec(), "j", v1::STAGE_GENERATE), ElementsAre("j/teacher"));
  EXPECT_THAT(SampleSetIdsOf(FullSpec(), "j", v1::STAGE_EVALUATE),
              ElementsAre("j/eval-0-base", "j/eval-0-teacher", "j/eval-0-student"));
}

TEST(Stages, TaskIdsNameTheirJob) {
  EXPECT_EQ(TaskId("a.b-1f", v1::STAGE_TRAIN, 0, 3), "a.b-1f.train.0.3");
  EXPECT_EQ(JobIdOfTask("a.b-1f.train.0.3"), "a.b-1f");
  EXPECT_EQ(JobIdOfTask("x.0.3"), "");
  EXPECT_EQ(JobIdOfTask(""), "");
}

TEST(BuildTask, StudentIsTheBaseWithTheAdapter) {
  const v1::JobSpec spec = FullSpec();
  const auto base = BuildTask(spec, FinishedTraining(), TaskOf(v1::STAGE_EVALUATE, 0, 0));
  const auto teacher = BuildTask(spec, FinishedTraining(), TaskOf(v1::STAGE_EVALUATE, 0, 1));
  const auto student = BuildTask(spec, FinishedTraining(), TaskOf(v1::STAGE_EVALUATE, 0, 2));
  ASSERT_TRUE(base.ok() && teacher.ok() && student.ok());
  const v1::SampleSet& base_set = base->generate().sample_sets(0);
  const v1::SampleSet& student_set = student->generate().sample_sets(0);
  EXPECT_EQ(base_set.sample_set_id(), "full-abc123/eval-0-base");
  EXPECT_EQ(base_set.generator().model(), "/models/student");
  EXPECT_EQ(base_set.generator().instruction(), "think");
  EXPECT_EQ(base_set.generator().sampling().n(), 1);
  EXPECT_TRUE(base_set.adapter_artifact_id().empty());
  EXPECT_EQ(teacher->generate().sample_sets(0).generator().model(), "/models/teacher");
  EXPECT_EQ(student_set.sample_set_id(), "full-abc123/eval-0-student");
  EXPECT_EQ(student_set.adapter_artifact_id(), "adapter-id");
  const auto judge = BuildTask(spec, FinishedTraining(), TaskOf(v1::STAGE_EVALUATE, 1, 0));
  ASSERT_TRUE(judge.ok());
  EXPECT_EQ(judge->judge().evaluations(0).student().SerializeAsString(), student_set.SerializeAsString());
}

TEST(BuildTask, BaseOfAnEndpointTeacherIsNative) {
  v1::JobSpec spec = FullSpec();
  spec.mutable_teacher()->set_backend(v1::TEACHER_BACKEND_OPENAI);
  spec.mutable_teacher()->set_base_url("http://127.0.0.1:1/v1");
  spec.mutable_teacher()->set_api_key_env("KEY");
  const auto base = BuildTask(spec, FinishedTraining(), TaskOf(v1::STAGE_EVALUATE, 0, 0));
  ASSERT_TRUE(base.ok());
  const v1::TeacherSpec& generator = base->generate().sample_sets(0).generator();
  EXPECT_EQ(generator.backend(), v1::TEACHER_BACKEND_NATIVE);
  EXPECT_TRUE(generator.base_url().empty());
  EXPECT_TRUE(generator.api_key_env().empty());
  EXPECT_GT(generator.batch_size(), 0);
}

TEST(BuildTask, ThePresentOfATemplateIsTheJobsSubmission) {
  internal::JobRecord job = FinishedTraining();
  job.mutable_submitted_at()->set_seconds(1'700'000'000);
  job.mutable_submitted_at()->set_nanos(5);
  const v1::JobSpec spec = FullSpec();
  EXPECT_EQ(BuildTask(spec, job, TaskOf(v1::STAGE_GENERATE, 0, 0))->generate().sample_sets(0).now_unix_seconds(),
            1'700'000'000);
  EXPECT_EQ(BuildTask(spec, job, TaskOf(v1::STAGE_EVALUATE, 0, 0))->generate().sample_sets(0).now_unix_seconds(),
            1'700'000'000);
  *job.add_dataset() = TrainSpec(1, 1).dataset(0);
  EXPECT_EQ(BuildTask(spec, job, TaskOf(v1::STAGE_TRAIN, 0, 0))->train().now_unix_seconds(), 1'700'000'000);
}

TEST(BuildTask, MissingInputsAreAnError) {
  internal::JobRecord job;
  job.set_job_id("full-abc123");
  EXPECT_FALSE(BuildTask(FullSpec(), job, TaskOf(v1::STAGE_TRAIN, 0, 0)).ok());
  EXPECT_FALSE(BuildTask(FullSpec(), job, TaskOf(v1::STAGE_EVALUATE, 0, 0)).ok());
  EXPECT_FALSE(BuildTask(FullSpec(), job, TaskOf(v1::STAGE_EXPORT, 0, 0)).ok());
}

TEST(Manifest, DatasetJobsHashTheirFiles) {
  const v1::JobSpec spec = TrainSpec(1, 1);
  v1::JobSpec other = spec;
  other.mutable_dataset(0)->set_weight(0.5);
  EXPECT_TRUE(IsSha256Hex(ManifestSha256(spec, {})));
  EXPECT_NE(ManifestSha256(spec, {}), ManifestSha256(other, {}));
  other = spec;
  other.mutable_dataset(0)->set_path("/elsewhere");
  EXPECT_EQ(ManifestSha256(spec, {}), ManifestSha256(other, {}));
}

TEST(ValidateSpec, NamesTheField) {
  EXPECT_TRUE(ValidateSpec(FullSpec()).ok());
  EXPECT_TRUE(ValidateSpec(TrainSpec(1, 2)).ok());
  const auto refused = [](const std::function<void(v1::JobSpec*)>& change, const char* field) {
    v1::JobSpec spec = FullSpec();
    change(&spec);
    const absl::Status status = ValidateSpec(spec);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
  };
  refused([](v1::JobSpec* spec) { spec->set_name("a/b"); }, "name");
  refused([](v1::JobSpec* spec) { spec->set_name(".."); }, "name");
  refused([](v1::JobSpec* spec) { spec->clear_teacher(); }, "teacher");
  refused([](v1::JobSpec* spec) { spec->mutable_prompts(0)->clear_file(); }, "prompts[0]");
  refused([](v1::JobSpec* spec) { spec->mutable_student()->clear_lora(); }, "student.lora");
  refused([](v1::JobSpec* spec) { spec->mutable_student()->mutable_workers()->set_min(5); }, "student.workers");
  refused(
      [](v1::JobSpec* spec) {
        spec->mutable_student()->mutable_workers()->set_max(5);
        spec->mutable_student()->mutable_workers()->set_min(5);
      },
      "gradient_accumulation_steps");
  refused([](v1::JobSpec* spec) { spec->mutable_evaluate(0)->mutable_sampling()->set_top_p(0); }, "evaluate[0].top_p");
  refused([](v1::JobSpec* spec) { *spec->add_dataset() = TrainSpec(1, 1).dataset(0); }, "dataset");
  EXPECT_EQ(ValidateSpec(v1::JobSpec()).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace retort
