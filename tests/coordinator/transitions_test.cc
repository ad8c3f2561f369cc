#include "coordinator/transitions.h"

#include <gtest/gtest.h>

namespace retort {
namespace {

TEST(Transitions, NothingLeavesSuccessOfJobsAndStages) {
  for (int to = v1::JobState_MIN; to <= v1::JobState_MAX; ++to) {
    EXPECT_FALSE(IsLegal(v1::JOB_STATE_SUCCEEDED, static_cast<v1::JobState>(to)));
  }
  for (int to = v1::StageState_MIN; to <= v1::StageState_MAX; ++to) {
    EXPECT_FALSE(IsLegal(v1::STAGE_STATE_SUCCEEDED, static_cast<v1::StageState>(to)));
  }
}

TEST(Transitions, NothingGoesToOrFromUnspecifiedOrToItself) {
  for (int i = v1::TaskState_MIN; i <= v1::TaskState_MAX; ++i) {
    const auto state = static_cast<v1::TaskState>(i);
    EXPECT_FALSE(IsLegal(state, state));
    EXPECT_FALSE(IsLegal(v1::TASK_STATE_UNSPECIFIED, state));
    EXPECT_FALSE(IsLegal(state, v1::TASK_STATE_UNSPECIFIED));
  }
}

TEST(Transitions, APlacementIsTheOnlyWayToRun) {
  for (int i = v1::TaskState_MIN; i <= v1::TaskState_MAX; ++i) {
    const auto from = static_cast<v1::TaskState>(i);
    EXPECT_EQ(IsLegal(from, v1::TASK_STATE_ASSIGNED), from == v1::TASK_STATE_WAITING);
    EXPECT_EQ(IsLegal(from, v1::TASK_STATE_RUNNING), from == v1::TASK_STATE_ASSIGNED);
  }
}

TEST(Transitions, EveryStateHasAName) {
  for (int i = v1::TaskState_MIN + 1; i <= v1::TaskState_MAX; ++i) {
    EXPECT_NE(ShortName(static_cast<v1::TaskState>(i)), "unspecified");
  }
  for (int i = v1::JobState_MIN + 1; i <= v1::JobState_MAX; ++i) {
    EXPECT_NE(ShortName(static_cast<v1::JobState>(i)), "unspecified");
  }
  for (int i = v1::StageState_MIN + 1; i <= v1::StageState_MAX; ++i) {
    EXPECT_NE(ShortName(static_cast<v1::StageState>(i)), "unspecified");
  }
  for (int i = v1::Stage_MIN + 1; i <= v1::Stage_MAX; ++i) {
    EXPECT_NE(ShortName(static_cast<v1::Stage>(i)), "unspecified");
  }
}

}  // namespace
}  // namespace retort
