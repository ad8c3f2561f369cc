#include "cli/local/local_state.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "cli/local/local_port.h"
#include "common/id.h"

namespace retort::cli {
namespace {

class LocalStateTest : public testing::Test {
 protected:
  LocalStateTest() { EXPECT_TRUE(MakeFolders(dir_).ok()); }
  ~LocalStateTest() override { std::filesystem::remove_all(dir_); }
  const std::string dir_ = testing::TempDir() + "/local_state_" + RandomHex(12);
};

TEST_F(LocalStateTest, RoundTrips) {
  EXPECT_TRUE(absl::IsNotFound(ReadLocalState(dir_).status()));
  ASSERT_TRUE(
      WriteLocalState(dir_, {.supervisor_pid = 11, .coordinator_pid = 12, .coordinator_port = 4242, .worker_pid = 13})
          .ok());
  EXPECT_EQ(
      ReadFile(LocalStatePath(dir_)).value(),
      "{\"coordinator\":{\"pid\":12,\"port\":4242},\"supervisor\":{\"pid\":11},\"worker\":{\"pid\":13,\"port\":0}}\n");
  const auto state = ReadLocalState(dir_);
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->supervisor_pid, 11);
  EXPECT_EQ(state->coordinator_pid, 12);
  EXPECT_EQ(state->coordinator_port, 4242);
  EXPECT_EQ(state->worker_pid, 13);
}

TEST_F(LocalStateTest, RefusesDamage) {
  for (const char* text :
       {"[]", "{}", "{\"supervisor\":{\"pid\":-5},\"coordinator\":{\"pid\":1,\"port\":99999},\"worker\":{\"pid\":1}}",
        "{"}) {
    ASSERT_TRUE(WriteFileAtomically(LocalStatePath(dir_), text).ok());
    EXPECT_TRUE(absl::IsInvalidArgument(ReadLocalState(dir_).status())) << text;
  }
}

TEST_F(LocalStateTest, ALockThatIsHeldIsALivingSupervisor) {
  EXPECT_EQ(LivingSupervisor(dir_).value(), 0);
  {
    const auto lock = TakeSupervisorLock(dir_);
    ASSERT_TRUE(lock.ok()) << lock.status();
    EXPECT_EQ(LivingSupervisor(dir_).value(), getpid());
    EXPECT_TRUE(absl::IsAlreadyExists(TakeSupervisorLock(dir_).status()));
  }
  // The file still names a process that lives; that says nothing.
  EXPECT_EQ(LivingSupervisor(dir_).value(), 0);
}

TEST_F(LocalStateTest, LastLinesAreBounded) {
  std::string text;
  for (int i = 0; i < 10'000; ++i) text += "line " + std::to_string(i) + "\n";
  ASSERT_TRUE(WriteFileAtomically(dir_ + "/log", text).ok());
  EXPECT_EQ(LastLines(dir_ + "/log", 2), "line 9998\nline 9999");
  EXPECT_LE(LastLines(dir_ + "/log", 100'000).size(), 8192u);
  EXPECT_EQ(LastLines(dir_ + "/none", 2), "");
}

}  // namespace
}  // namespace retort::cli
