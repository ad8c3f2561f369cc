// `distctl local` with the real programs.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/local/local_state.h"
#include "common/file.h"
#include "common/id.h"
#include "common/process.h"

namespace retort::cli {
namespace {

using testing::HasSubstr;

bool Eventually(const std::function<bool()>& condition, absl::Duration timeout = absl::Seconds(15)) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!condition()) {
    if (absl::Now() >= deadline) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

struct Output {
  int exit_code = -1;
  std::string text;  // stdout and stderr; read until nobody holds the pipe
};

class LocalClusterTest : public testing::Test {
 protected:
  ~LocalClusterTest() override {
    Distctl({"local", "down"});
    std::filesystem::remove_all(dir_);
  }

  Output Distctl(const std::vector<std::string>& words) {
    int fds[2];
    EXPECT_EQ(pipe2(fds, O_CLOEXEC), 0);
    const UniqueFd reader(fds[0]);
    UniqueFd writer(fds[1]);
    SpawnOptions options;
    options.argv = {std::string(getenv("RETORT_BIN_DIR")) + "/distctl", "--state-dir", dir_};
    options.argv.insert(options.argv.end(), words.begin(), words.end());
    options.environment = EnvironmentWith({});
    options.stdout_fd = writer.get();
    options.stderr_fd = writer.get();
    const auto child = SpawnProcess(options);
    EXPECT_TRUE(child.ok()) << child.status();
    writer.Reset();
    Output output;
    char buffer[4096];
    while (true) {
      const ssize_t size = read(reader.get(), buffer, sizeof(buffer));
      if (size <= 0) break;
      output.text.append(buffer, static_cast<size_t>(size));
    }
    const auto exit = WaitProcess(child->pid, absl::Seconds(40));
    EXPECT_TRUE(exit.ok()) << exit.status();
    output.exit_code = exit.ok() ? exit->exit_code : -1;
    return output;
  }
  LocalState Processes() {
    const auto state = ReadLocalState(dir_);
    return state.ok() ? *state : LocalState{};
  }
  std::string WorkerId() { return ReadFile(dir_ + "/worker/worker_id").value_or(""); }

  const std::string dir_ = std::filesystem::temp_directory_path().string() + "/local_cluster_" + RandomHex(12);
};

TEST_F(LocalClusterTest, UpIsIdempotentAndDownLeavesNothing) {
  const Output up = Distctl({"local", "up"});  // returns at all: the daemons hold nothing of the caller's
  ASSERT_EQ(up.exit_code, 0) << up.text;
  EXPECT_THAT(up.text, HasSubstr("local cluster started: coordinator at 127.0.0.1:"));
  const LocalState first = Processes();
  const Output again = Distctl({"local", "up", "--json"});
  ASSERT_EQ(again.exit_code, 0) << again.text;
  const nlohmann::json document = nlohmann::json::parse(again.text);
  EXPECT_EQ(document["state"], "running");
  EXPECT_EQ(document["coordinator"]["pid"], first.coordinator_pid);
  EXPECT_EQ(Distctl({"local", "up", "--port", absl::StrCat(first.coordinator_port + 1)}).exit_code, 1);

  EXPECT_EQ(Distctl({"local", "down"}).exit_code, 0);
  for (const pid_t pid : {first.supervisor_pid, first.coordinator_pid, first.worker_pid}) {
    EXPECT_TRUE(absl::IsNotFound(IdentifyProcess(pid).status())) << pid;
  }
  EXPECT_FALSE(std::filesystem::exists(LocalStatePath(dir_)));
  const Output nothing = Distctl({"local", "down"});
  EXPECT_EQ(nothing.exit_code, 0);
  EXPECT_THAT(nothing.text, HasSubstr("no local cluster runs in"));
}

TEST_F(LocalClusterTest, WhatDiesIsStartedAgainInItsPlace) {
  ASSERT_EQ(Distctl({"local", "up"}).exit_code, 0);
  const LocalState first = Processes();
  kill(first.coordinator_pid, SIGKILL);
  ASSERT_TRUE(Eventually(
      [&] { return Processes().coordinator_pid != first.coordinator_pid && Processes().coordinator_pid != 0; }));
  EXPECT_EQ(Processes().coordinator_port, first.coordinator_port);
  kill(first.worker_pid, SIGKILL);
  ASSERT_TRUE(Eventually([&] { return Processes().worker_pid != first.worker_pid && Processes().worker_pid != 0; }));
  EXPECT_EQ(Processes().supervisor_pid, first.supervisor_pid);
  EXPECT_EQ(Distctl({"local", "up"}).exit_code, 0);  // both are well
}

TEST_F(LocalClusterTest, AKilledClusterComesBackFromItsFolder) {
  ASSERT_EQ(Distctl({"local", "up"}).exit_code, 0);
  const LocalState first = Processes();
  const std::string worker_id = WorkerId();
  kill(first.supervisor_pid, SIGKILL);
  // The kernel takes the others along.
  ASSERT_TRUE(Eventually(
      [&] { return !IdentifyProcess(first.coordinator_pid).ok() && !IdentifyProcess(first.worker_pid).ok(); }));
  const Output up = Distctl({"local", "up"});
  ASSERT_EQ(up.exit_code, 0) << up.text;
  EXPECT_NE(Processes().supervisor_pid, first.supervisor_pid);
  EXPECT_EQ(Processes().coordinator_port, first.coordinator_port);
  EXPECT_EQ(WorkerId(), worker_id);
}

TEST_F(LocalClusterTest, AUsedPortIsAnErrorThatNamesIt) {
  const UniqueFd other(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(other.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(other.get(), 1), 0);
  ASSERT_EQ(getsockname(other.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
  const std::string port = absl::StrCat(ntohs(address.sin_port));
  const Output up = Distctl({"local", "up", "--port", port});
  EXPECT_EQ(up.exit_code, 1);
  EXPECT_EQ(up.text,
            absl::StrCat(
                "distctl: port ", port,
                " of 127.0.0.1 is used by another process; choose another with --port, or none to get a free one\n"));
  EXPECT_EQ(Distctl({"local", "up", "--port", "65536"}).exit_code, 2);
}

TEST_F(LocalClusterTest, ADaemonThatCannotStartIsExplained) {
  // A file where the coordinator's folder should be.
  ASSERT_TRUE(MakeFolders(dir_, 0700).ok());
  ASSERT_TRUE(WriteFileAtomically(dir_ + "/coordinator", "in the way").ok());
  const Output up = Distctl({"local", "up"});
  EXPECT_EQ(up.exit_code, 1);
  EXPECT_THAT(up.text, HasSubstr("the coordinator does not start"));
  EXPECT_THAT(up.text, HasSubstr(dir_ + "/coordinator"));
  EXPECT_EQ(LivingSupervisor(dir_).value(), 0);
}

}  // namespace
}  // namespace retort::cli
