// What jobs name stays in the artifact store; what they let go, or nobody ever named, goes.
#include "coordinator/background/sweep_artifacts.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "tests/coordinator/harness.h"

namespace retort {
namespace {

class SweepArtifactsTest : public ::testing::Test {
 protected:
  SweepArtifactsTest() : root_(absl::StrCat(testing::TempDir(), "/retort_sweep_", getpid())), clock_(absl::Now()) {
    std::filesystem::remove_all(root_);
    store_ = storage::ArtifactStore::Open({.root = root_}).value();
    for (const char* contents : {"prompts", "train", "evaluation", "curated"})
      EXPECT_TRUE(store_->PutBytes(contents).ok());
    cluster_.StartWorker("w", 4);
  }
  ~SweepArtifactsTest() override { std::filesystem::remove_all(root_); }

  std::string PutFolder(const std::string& contents) {
    v1::Artifact artifact;
    v1::ArtifactFile& file = *artifact.add_files();
    file.set_path("file");
    *file.mutable_blob() = store_->PutBytes(contents).value();
    return store_->PutArtifact(artifact).value();
  }
  // Without touching it.
  bool Holds(const std::string& artifact_id) const {
    return std::filesystem::exists(absl::StrCat(root_, "/listings/", artifact_id.substr(0, 2), "/", artifact_id));
  }
  bool HoldsBlob(const std::string& contents) const {
    const std::string sha256 = Sha256Hex(contents);
    return std::filesystem::exists(absl::StrCat(root_, "/blobs/", sha256.substr(0, 2), "/", sha256));
  }
  std::string Register(const std::string& job_id, int64_t step) {
    v1::Checkpoint checkpoint;
    checkpoint.set_step(step);
    checkpoint.set_rolling(true);
    checkpoint.set_artifact_id(PutFolder(absl::StrCat("weights of step ", step)));
    const absl::Status registered = cluster_.core().RegisterCheckpoint(cluster_.Running(job_id)[0], checkpoint, 1);
    EXPECT_TRUE(registered.ok()) << registered;
    return checkpoint.artifact_id();
  }

  const std::string root_;
  FakeClock clock_;  // as the files' times
  std::unique_ptr<storage::ArtifactStore> store_;
  Harness cluster_;
};

TEST_F(SweepArtifactsTest, CheckpointsThatWereLetGoLeaveTheDiskSoon) {
  const std::string job_id = cluster_.Submit(TrainSpec(1, 1));
  ArtifactSweeper sweeper(&cluster_.core(), store_.get(), &clock_);
  std::vector<std::string> ids;
  for (const int64_t step : {1, 2, 3, 4}) {
    ids.push_back(Register(job_id, step));
    ASSERT_TRUE(sweeper.SweepIfDue().ok());
  }
  for (const std::string& id : ids) EXPECT_TRUE(Holds(id));  // somebody may be looking at them
  PutFolder("an upload that is not named yet");
  clock_.Advance(absl::Minutes(3));
  ASSERT_TRUE(sweeper.SweepIfDue().ok());
  EXPECT_FALSE(Holds(ids[0]));
  EXPECT_FALSE(Holds(ids[1]));
  EXPECT_FALSE(HoldsBlob("weights of step 1"));
  EXPECT_TRUE(HoldsBlob("weights of step 3") && Holds(ids[2]));
  EXPECT_TRUE(HoldsBlob("weights of step 4") && Holds(ids[3]));
  EXPECT_TRUE(HoldsBlob("an upload that is not named yet"));
}

TEST_F(SweepArtifactsTest, WhatAJobNamesStaysWhateverItsAgeAndAfterARestart) {
  v1::JobSpec spec = FullSpec();
  const std::string job_id = cluster_.Submit(spec);
  cluster_.RunToEnd(job_id);
  ASSERT_EQ(cluster_.Job(job_id).state(), v1::JOB_STATE_SUCCEEDED);
  const std::string open_job = cluster_.Submit(TrainSpec(1, 1));
  std::vector<std::string> ids = {Register(open_job, 1), Register(open_job, 2), Register(open_job, 3)};
  const std::string orphan = PutFolder("nobody's");
  for (int life = 0; life < 2; ++life) {
    const auto live = cluster_.core().TakeLiveArtifacts();
    ASSERT_TRUE(live.ok());
    // Files of the specs and of the curated dataset, checkpoints, and the artifacts of every stage.
    for (const char* contents : {"prompts", "train", "evaluation", "curated"})
      EXPECT_TRUE(live->blobs.contains(Sha256Hex(contents))) << contents;
    const v1::Job job = cluster_.Job(job_id);
    for (const v1::JobArtifact& artifact : job.result().artifacts())
      EXPECT_TRUE(live->artifacts.contains(artifact.artifact_id())) << artifact.name();
    ArtifactSweeper sweeper(&cluster_.core(), store_.get(), &clock_);
    clock_.Advance(absl::Hours(2));
    ASSERT_TRUE(sweeper.SweepIfDue().ok());
    EXPECT_FALSE(Holds(orphan));
    EXPECT_FALSE(HoldsBlob("nobody's"));
    EXPECT_FALSE(Holds(ids[0]));
    for (const char* contents : {"prompts", "train", "evaluation", "curated", "weights of step 2", "weights of step 3"})
      EXPECT_TRUE(HoldsBlob(contents)) << contents;
    EXPECT_TRUE(Holds(ids[1]) && Holds(ids[2]));
    cluster_.Restart();
    cluster_.Settle();
  }
}

TEST_F(SweepArtifactsTest, WithoutReasonItRunsEveryTenMinutes) {
  ArtifactSweeper sweeper(&cluster_.core(), store_.get(), &clock_);
  ASSERT_TRUE(sweeper.SweepIfDue().ok());
  clock_.Advance(absl::Hours(2));
  ASSERT_TRUE(sweeper.SweepIfDue().ok());
  EXPECT_FALSE(HoldsBlob("prompts"));
  ASSERT_TRUE(store_->PutBytes("prompts").ok());
  clock_.Advance(absl::Minutes(9));
  ASSERT_TRUE(sweeper.SweepIfDue().ok());
  EXPECT_TRUE(HoldsBlob("prompts"));
  clock_.Advance(absl::Minutes(1));
  ASSERT_TRUE(sweeper.SweepIfDue().ok());
  EXPECT_FALSE(HoldsBlob("prompts"));
}

}  // namespace
}  // namespace retort
