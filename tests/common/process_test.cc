#include "common/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <string>
#include <thread>

namespace retort {
namespace {

// Runs a shell line and gives what it wrote.
std::string Shell(const std::string& line, SpawnOptions options = {}) {
  int pipe_fds[2];
  EXPECT_EQ(pipe2(pipe_fds, O_CLOEXEC), 0);
  UniqueFd reader(pipe_fds[0]);
  UniqueFd writer(pipe_fds[1]);
  options.argv = {"/bin/sh", "-c", line};
  options.stdout_fd = writer.get();
  const auto child = SpawnProcess(options);
  EXPECT_TRUE(child.ok()) << child.status();
  writer.Reset();
  std::string output;
  char buffer[4096];
  while (true) {
    const ssize_t size = read(reader.get(), buffer, sizeof(buffer));
    if (size <= 0) break;
    output.append(buffer, static_cast<size_t>(size));
  }
  EXPECT_TRUE(WaitProcess(child->pid, absl::Seconds(10)).ok());
  return output;
}

TEST(SpawnProcess, GivesTheChildWhatItWasToldAndNothingElse) {
  const UniqueFd secret(open("/dev/null", O_RDONLY));  // inheritable on purpose
  ASSERT_TRUE(secret.valid());
  EXPECT_EQ(Shell("echo $A; pwd", {.environment = {"A=b"}, .working_folder = "/usr"}), "b\n/usr\n");
  // ls itself opens the folder as 3.
  EXPECT_EQ(Shell("ls /proc/self/fd", {.environment = {"PATH=/bin:/usr/bin"}}), "0\n1\n2\n3\n");
  EXPECT_EQ(Shell("cat; echo end", {.environment = {"PATH=/bin:/usr/bin"}}), "end\n");
}

TEST(SpawnProcess, SaysWhatCouldNotBeStarted) {
  const auto missing = SpawnProcess({.argv = {"/no/such/program"}});
  EXPECT_TRUE(absl::IsNotFound(missing.status()));
  EXPECT_EQ(missing.status().message(), "start /no/such/program: No such file or directory");
  const auto folder = SpawnProcess({.argv = {"/bin/true"}, .working_folder = "/no/folder"});
  EXPECT_EQ(folder.status().message(), "enter the working folder of /bin/true: No such file or directory");
}

TEST(SpawnProcess, ReportsExitCodesAndSignals) {
  const auto run = [](const std::string& line) {
    const auto child = SpawnProcess({.argv = {"/bin/sh", "-c", line}});
    EXPECT_TRUE(child.ok());
    return WaitProcess(child->pid, absl::Seconds(10)).value();
  };
  EXPECT_EQ(run("exit 7").exit_code, 7);
  EXPECT_EQ(run("kill -KILL $$").signal, SIGKILL);
  EXPECT_EQ(run("kill -KILL $$").ToString(), "signal 9 (Killed)");
}

TEST(SpawnProcess, TheGroupDiesTogether) {
  const auto child = SpawnProcess({.argv = {"/bin/sh", "-c", "sleep 100 & sleep 100"}});
  ASSERT_TRUE(child.ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(WaitProcess(child->pid, absl::ZeroDuration()).status()));
  KillProcessGroup(child->pid, SIGKILL);
  EXPECT_EQ(WaitProcess(child->pid, absl::Seconds(10))->signal, SIGKILL);
}

TEST(SpawnProcess, DiesWithItsThread) {
  pid_t pid = 0;
  std::thread spawner([&] {
    const auto child = SpawnProcess({.argv = {"/bin/sleep", "100"}, .die_with_thread = true});
    ASSERT_TRUE(child.ok()) << child.status();
    pid = child->pid;
  });
  spawner.join();
  const auto exit = WaitProcess(pid, absl::Seconds(10));
  ASSERT_TRUE(exit.ok()) << exit.status();
  EXPECT_EQ(exit->signal, SIGKILL);
}

TEST(ProcessIdentity, TellsAProcessFromItsSuccessor) {
  const auto self = IdentifyProcess(getpid());
  ASSERT_TRUE(self.ok());
  EXPECT_TRUE(IsAlive(*self));
  ProcessIdentity other = *self;
  other.start_ticks += 1;
  EXPECT_FALSE(IsAlive(other));
  const auto child = SpawnProcess({.argv = {"/bin/true"}});
  ASSERT_TRUE(child.ok());
  while (IdentifyProcess(child->pid).ok()) std::this_thread::yield();
  EXPECT_TRUE(absl::IsNotFound(IdentifyProcess(child->pid).status()));  // ended, not reaped
  EXPECT_TRUE(WaitProcess(child->pid, absl::Seconds(10)).ok());
}

TEST(Environment, OverridesReplace) {
  setenv("RETORT_TEST_VARIABLE", "old", 1);
  int found = 0;
  for (const std::string& word : EnvironmentWith({"RETORT_TEST_VARIABLE=new"})) {
    if (word.rfind("RETORT_TEST_VARIABLE=", 0) == 0) {
      ++found;
      EXPECT_EQ(word, "RETORT_TEST_VARIABLE=new");
    }
  }
  EXPECT_EQ(found, 1);
}

}  // namespace
}  // namespace retort
