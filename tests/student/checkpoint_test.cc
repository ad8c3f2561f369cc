#include "student/checkpoint.h"

#include <ATen/Functions.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "student/checkpoint_saver.h"

namespace retort {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "checkpoint_test.XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { fs::remove_all(root_); }

  static Snapshot Make(int64_t step) {
    Snapshot snapshot;
    snapshot.step = step;
    snapshot.total_steps = 100;
    snapshot.cursor = {1, 8};
    snapshot.manifest_sha256 = "m";
    snapshot.adapter.config.r = 2;
    snapshot.adapter.config.target_modules = {"q_proj"};
    snapshot.adapter.modules["model.layers.0.self_attn.q_proj"] = {at::randn({2, 3}), at::randn({4, 2})};
    snapshot.moments = {at::randn({14}), at::rand({14})};
    snapshot.parameters = {{"model.layers.0.self_attn.q_proj.lora_A", {2, 3}, 0, 6},
                           {"model.layers.0.self_attn.q_proj.lora_B", {4, 2}, 6, 8}};
    v1::LossPoint point;
    point.set_step(step);
    point.set_loss(0.1 + 0.2);  // not a short decimal
    point.set_eval_loss(1.0 / 3.0);
    snapshot.history = {point};
    return snapshot;
  }

  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(root_)) names.push_back(entry.path().filename().string());
    return names;
  }

  std::string root_;
};

TEST_F(CheckpointTest, ComesBackBitForBit) {
  const Snapshot snapshot = Make(7);
  const auto folder = WriteCheckpoint(snapshot, root_);
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_THAT(Names(), ElementsAre("checkpoint-7"));
  const auto loaded = LoadCheckpoint(*folder);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->step, 7);
  EXPECT_EQ(loaded->manifest_sha256, "m");
  ASSERT_EQ(loaded->history.size(), 1u);
  EXPECT_EQ(loaded->history[0].SerializeAsString(), snapshot.history[0].SerializeAsString());
  const auto moments = AssembleMoments(*loaded, snapshot.parameters);
  ASSERT_TRUE(moments.ok()) << moments.status();
  EXPECT_TRUE(at::equal(moments->exp_avg, snapshot.moments.exp_avg));
  EXPECT_TRUE(at::equal(moments->exp_avg_sq, snapshot.moments.exp_avg_sq));
}

TEST_F(CheckpointTest, AnyDamageIsFoundAndNamed) {
  for (const char* name :
       {"adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json"}) {
    const auto folder = WriteCheckpoint(Make(7), root_);
    ASSERT_TRUE(folder.ok());
    const std::string path = absl::StrCat(*folder, "/", name);
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(-2, std::ios::end);
    const char last = static_cast<char>(file.get());
    file.seekp(-2, std::ios::end);
    file.put(static_cast<char>(last ^ 1));
    file.close();
    const absl::Status damaged = LoadCheckpoint(*folder).status();
    EXPECT_EQ(damaged.code(), absl::StatusCode::kDataLoss) << damaged;
    EXPECT_THAT(damaged.message(), HasSubstr(name));
    fs::remove(path);
    EXPECT_EQ(LoadCheckpoint(*folder).status().code(), absl::StatusCode::kDataLoss);
  }
}

TEST_F(CheckpointTest, OptimizerStateOfAnotherModelIsRefused) {
  const auto folder = WriteCheckpoint(Make(7), root_);
  ASSERT_TRUE(folder.ok());
  const auto loaded = LoadCheckpoint(*folder);
  ASSERT_TRUE(loaded.ok());
  EXPECT_FALSE(AssembleMoments(*loaded, {{"other", {6}, 0, 6}}).ok());
  EXPECT_FALSE(AssembleMoments(*loaded, {{"model.layers.0.self_attn.q_proj.lora_A", {3, 2}, 0, 6}}).ok());
}

TEST_F(CheckpointTest, OfThoseMadeByTimeOnlyTheNewestTwoAreKept) {
  std::vector<int64_t> rolling;
  for (const int limit : {0, 1}) {
    CheckpointSaver saver({root_, limit, [](const std::string& folder) { return folder; },
                           [&](const v1::Checkpoint& checkpoint) {
                             if (checkpoint.rolling()) rolling.push_back(checkpoint.step());
                             return absl::OkStatus();
                           }});
    for (const int64_t step : {8, 9, 10, 20, 21, 22, 23}) ASSERT_TRUE(saver.Save(Make(step), step % 10 != 0).ok());
    ASSERT_TRUE(saver.Flush(absl::Seconds(30)).ok());
    EXPECT_THAT(rolling, ElementsAre(8, 9, 21, 22, 23));
    if (limit == 0) {
      EXPECT_THAT(Names(), UnorderedElementsAre("checkpoint-10", "checkpoint-20", "checkpoint-22", "checkpoint-23"));
    } else {
      EXPECT_THAT(Names(), UnorderedElementsAre("checkpoint-20", "checkpoint-22", "checkpoint-23"));
    }
    rolling.clear();
    for (const std::string& name : Names()) fs::remove_all(root_ + "/" + name);
  }
}

TEST_F(CheckpointTest, TheSaverPublishesInOrderAfterUploading) {
  std::vector<std::string> events;
  CheckpointSaver saver({root_, 1,
                         [&](const std::string& folder) -> absl::StatusOr<std::string> {
                           EXPECT_TRUE(LoadCheckpoint(folder).ok());
                           events.push_back("upload " + fs::path(folder).filename().string());
                           return "id-" + fs::path(folder).filename().string();
                         },
                         [&](const v1::Checkpoint& checkpoint) {
                           events.push_back("publish " + checkpoint.artifact_id());
                           EXPECT_EQ(checkpoint.losses_size(), 1);
                           return absl::OkStatus();
                         }});
  for (const int64_t step : {1, 2, 3, 4, 5}) ASSERT_TRUE(saver.Save(Make(step), false).ok());
  const auto newest = saver.Flush(absl::Seconds(30));
  ASSERT_TRUE(newest.ok()) << newest.status();
  EXPECT_EQ(newest->step(), 5);
  EXPECT_TRUE(saver.idle());
  ASSERT_EQ(events.size(), 10u);
  EXPECT_EQ(events[0], "upload checkpoint-1");
  EXPECT_EQ(events[1], "publish id-checkpoint-1");
  EXPECT_EQ(events[9], "publish id-checkpoint-5");
  EXPECT_THAT(Names(), ElementsAre("checkpoint-5"));
}

TEST_F(CheckpointTest, AFailedUploadIsNotForgotten) {
  CheckpointSaver saver({root_, 0, [](const std::string&) { return absl::ResourceExhaustedError("disk full"); },
                         [](const v1::Checkpoint&) { return absl::OkStatus(); }});
  ASSERT_TRUE(saver.Save(Make(1), false).ok());
  const absl::Status status = saver.Flush(absl::Seconds(30)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("step 1"));
  EXPECT_FALSE(saver.Save(Make(2), false).ok());
}

}  // namespace
}  // namespace retort
