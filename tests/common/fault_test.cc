#include "common/fault.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

namespace retort {
namespace {

// Passes "a", "b", "a", then ends with 0.
[[noreturn]] void PassPoints() {
  MAYBE_FAULT("a");
  MAYBE_FAULT("b");
  MAYBE_FAULT("a");
  _exit(0);
}

// Each death test starts this program anew, which then finds RETORT_FAULT in its environment.
class FaultDeathTest : public testing::Test {
 protected:
  FaultDeathTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
  ~FaultDeathTest() override { unsetenv("RETORT_FAULT"); }
};

TEST_F(FaultDeathTest, FiresAtTheNthPassage) {
  setenv("RETORT_FAULT", "a:2", 1);
  EXPECT_EXIT(PassPoints(), testing::KilledBySignal(SIGKILL), "fault_fired point=a");
  setenv("RETORT_FAULT", "a:3", 1);
  EXPECT_EXIT(PassPoints(), testing::ExitedWithCode(0), "");
  setenv("RETORT_FAULT", "c:1,b:1:exit", 1);
  EXPECT_EXIT(PassPoints(), testing::ExitedWithCode(70), "fault_fired point=b");
  setenv("RETORT_FAULT", "b:1:1", 1);
  EXPECT_EXIT(PassPoints(), testing::ExitedWithCode(0), "fault_fired point=b");
}

TEST_F(FaultDeathTest, RefusesWhatItDoesNotUnderstand) {
  for (const char* word : {"a", "a:0", "a:1:explode"}) {
    setenv("RETORT_FAULT", word, 1);
    EXPECT_EXIT(PassPoints(), testing::ExitedWithCode(70), "is not point:n");
  }
}

}  // namespace
}  // namespace retort
