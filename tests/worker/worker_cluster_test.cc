// Runs the real retort-worker against a coordinator in this process; shell scripts stand in for the task programs.
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/file.h"
#include "common/id.h"
#include "common/process.h"
#include "tests/worker/fake_coordinator.h"

namespace retort::worker {
namespace {

// Waits until `condition` holds; false after `timeout`.
bool Eventually(const std::function<bool()>& condition, absl::Duration timeout = absl::Seconds(10)) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!condition()) {
    if (absl::Now() >= deadline) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return true;
}

v1::Assignment Assign(const std::string& task_id, uint64_t epoch, const std::string& role = "student") {
  v1::Assignment assignment;
  assignment.mutable_ref()->set_task_id(task_id);
  assignment.mutable_ref()->set_epoch(epoch);
  assignment.set_role(role);
  assignment.set_threads(3);
  return assignment;
}

class WorkerClusterTest : public testing::Test {
 protected:
  WorkerClusterTest() {
    EXPECT_TRUE(MakeFolders(root_ + "/bin").ok());
    EXPECT_TRUE(WriteFileAtomically(root_ + "/token", "0123456789abcdef0123456789abcdef\n", 0600).ok());
    // Writes its process id, then waits to be killed; what it starts writes its own.
    Script("student", "echo $$ > pid; echo started; exec sleep 1000");
  }
  ~WorkerClusterTest() override {
    KillDaemon(SIGKILL);
    std::filesystem::remove_all(root_);
  }

  void Script(const std::string& role, const std::string& body) {
    const std::string path = root_ + "/bin/retort-" + role;
    ASSERT_TRUE(WriteFileAtomically(path, "#!/bin/sh\n" + body + "\n", 0755).ok());
  }
  void StartDaemon(const std::vector<std::string>& environment = {}) {
    SpawnOptions options;
    options.argv = {std::string(getenv("RETORT_BIN_DIR")) + "/retort-worker",
                    "--state-dir",
                    root_ + "/worker",
                    "--coordinator",
                    coordinator_.address(),
                    "--token-file",
                    root_ + "/token",
                    "--bin-dir",
                    root_ + "/bin"};
    options.environment = EnvironmentWith(environment);
    options.stderr_fd = 2;
    options.die_with_thread = true;
    const auto child = SpawnProcess(options);
    ASSERT_TRUE(child.ok()) << child.status();
    daemon_ = child->pid;
  }
  ProcessExit KillDaemon(int signal) {
    if (daemon_ == 0) return {};
    kill(daemon_, signal);
    const auto exit = WaitProcess(daemon_, absl::Seconds(15));
    EXPECT_TRUE(exit.ok()) << exit.status();
    daemon_ = 0;
    return exit.ok() ? *exit : ProcessExit{};
  }
  std::string WorkFile(const TaskKey& task, const std::string& name) {
    const auto text = ReadFile(absl::StrCat(root_, "/worker/tasks/", NameOf(task), "/", name));
    return text.ok() ? *text : "";
  }
  // The process that the script named in file `name`; waits for it.
  ProcessIdentity ProcessIn(const TaskKey& task, const std::string& name = "pid") {
    EXPECT_TRUE(Eventually([&] { return WorkFile(task, name).find('\n') != std::string::npos; }));
    int pid = 0;
    EXPECT_TRUE(absl::SimpleAtoi(WorkFile(task, name), &pid));
    const auto identity = IdentifyProcess(pid);
    EXPECT_TRUE(identity.ok()) << identity.status();
    return identity.ok() ? *identity : ProcessIdentity{};
  }
  v1::TaskExit ExitAt(size_t index) {
    EXPECT_TRUE(Eventually([&] { return coordinator_.exits().size() > index; }));
    const auto exits = coordinator_.exits();
    return index < exits.size() ? exits[index] : v1::TaskExit();
  }

  const std::string root_ = std::filesystem::temp_directory_path().string() + "/worker_cluster_" + RandomHex(12);
  FakeCoordinator coordinator_;
  pid_t daemon_ = 0;
};

TEST_F(WorkerClusterTest, RunsATaskAsItWasTold) {
  Script("teacher",
         "echo \"$@\"; echo threads $OMP_NUM_THREADS $MKL_NUM_THREADS; echo gpus $CUDA_VISIBLE_DEVICES; pwd; exit 0");
  StartDaemon();
  v1::Assignment assignment = Assign("job.generate.0.0", 7, "teacher");
  assignment.add_gpu_indices(1);
  assignment.add_gpu_indices(2);
  coordinator_.Assign({assignment});
  const v1::TaskExit exit = ExitAt(0);
  EXPECT_EQ(exit.ref().task_id(), "job.generate.0.0");
  EXPECT_EQ(exit.exit_code(), 0);
  EXPECT_EQ(exit.signal(), 0);
  EXPECT_FALSE(exit.killed_by_worker());
  const std::string work = root_ + "/worker/tasks/job.generate.0.0.7";
  EXPECT_EQ(coordinator_.log({"job.generate.0.0", 7}),
            absl::StrCat("task --coordinator ", coordinator_.address(),
                         " --task-id job.generate.0.0 --epoch 7 --work-dir ", work, " --threads 3 --cache-dir ", root_,
                         "/worker/cache --token-file ", root_, "/token\nthreads 3 3\ngpus 1,2\n", work, "\n"));
}

TEST_F(WorkerClusterTest, ReportsHowTasksEnd) {
  Script("student", "echo to stdout; echo what went wrong >&2; exit 5");
  Script("teacher", "kill -SEGV $$");
  StartDaemon();
  coordinator_.Assign({Assign("s", 1)});
  EXPECT_EQ(ExitAt(0).exit_code(), 5);
  EXPECT_EQ(ExitAt(0).message(), "what went wrong");
  coordinator_.Assign({Assign("t", 2, "teacher")});
  EXPECT_EQ(ExitAt(1).signal(), SIGSEGV);
  coordinator_.Assign({Assign("c", 3, "curate")});
  EXPECT_EQ(ExitAt(2).exit_code(), 127);
  EXPECT_EQ(ExitAt(2).message(),
            absl::StrCat("could not be started: start ", root_, "/bin/retort-curate: No such file or directory"));
  coordinator_.Assign({Assign("x", 4, "../evil")});
  EXPECT_EQ(ExitAt(3).message(), "could not be started: role \"../evil\": this worker has no such program");
  coordinator_.Assign({Assign("../x", 5)});
  EXPECT_EQ(ExitAt(4).message(), "could not be started: task id \"../x\" cannot name a folder");
}

TEST_F(WorkerClusterTest, AKilledTaskIsReportedWithin50Milliseconds) {
  StartDaemon();
  coordinator_.Assign({Assign("s", 1)});
  const ProcessIdentity process = ProcessIn({"s", 1});
  ASSERT_TRUE(Eventually([&] { return coordinator_.log({"s", 1}) == "started\n"; }));
  const absl::Time start = absl::Now();
  kill(process.pid, SIGKILL);
  EXPECT_EQ(ExitAt(0).signal(), SIGKILL);
  // The bound is 50 ms on a machine of its own; tests share theirs.
  EXPECT_LT(absl::Now() - start, absl::Milliseconds(500));
  RecordProperty("report_ms", absl::StrCat(absl::ToInt64Milliseconds(absl::Now() - start)));
}

TEST_F(WorkerClusterTest, AWithdrawnTaskIsStoppedWithAllItStarted) {
  Script("student",
         "echo $$ > pid; trap '' TERM; sleep 1000 & echo $! > child; setsid sleep 1000 & echo $! > stray; while :; do "
         "sleep 1; done");
  StartDaemon();
  coordinator_.Assign({Assign("s", 1)});
  const ProcessIdentity leader = ProcessIn({"s", 1});
  const ProcessIdentity child = ProcessIn({"s", 1}, "child");
  const ProcessIdentity stray = ProcessIn({"s", 1}, "stray");
  ASSERT_TRUE(Eventually([&] { return coordinator_.running().size() == 1; }));
  EXPECT_EQ(coordinator_.running()[0].pid(), leader.pid);
  coordinator_.Assign({});
  const v1::TaskExit exit = ExitAt(0);
  EXPECT_EQ(exit.signal(), SIGKILL);  // it did not heed SIGTERM
  EXPECT_TRUE(exit.killed_by_worker());
  EXPECT_FALSE(IsAlive(leader));
  EXPECT_FALSE(IsAlive(child));
  EXPECT_FALSE(IsAlive(stray));
  EXPECT_TRUE(Eventually([&] { return coordinator_.running().empty(); }));
}

TEST_F(WorkerClusterTest, TheNextPlacementStartsWhenTheOldOneIsGone) {
  StartDaemon();
  coordinator_.Assign({Assign("s", 1)});
  const ProcessIdentity old = ProcessIn({"s", 1});
  coordinator_.Assign({Assign("s", 2)});
  ProcessIn({"s", 2});
  EXPECT_FALSE(IsAlive(old));
  EXPECT_EQ(ExitAt(0).ref().epoch(), 1u);
}

TEST_F(WorkerClusterTest, NoOrphanIsLeftWhenTheDaemonIsKilled) {
  Script("student", "echo $$ > pid; setsid sleep 1000 & echo $! > stray; wait");
  StartDaemon();
  coordinator_.Assign({Assign("s", 1)});
  const ProcessIdentity process = ProcessIn({"s", 1});
  const ProcessIdentity stray = ProcessIn({"s", 1}, "stray");
  KillDaemon(SIGKILL);
  EXPECT_TRUE(Eventually([&] { return !IsAlive(process); }));
  // A new daemon is the same worker in a new life, and kills what the task had started.
  coordinator_.Assign({});
  StartDaemon();
  ASSERT_TRUE(Eventually([&] { return coordinator_.registrations().size() >= 2; }));
  const auto registrations = coordinator_.registrations();
  EXPECT_FALSE(IsAlive(stray));
  EXPECT_EQ(registrations.front().worker_id(), registrations.back().worker_id());
  EXPECT_NE(registrations.front().incarnation_id(), registrations.back().incarnation_id());
  EXPECT_EQ(registrations.back().running_size(), 0);
}

TEST_F(WorkerClusterTest, TasksOutliveARestartOfTheCoordinator) {
  Script("student", "echo $$ > pid; echo before; while [ ! -e go ]; do sleep 0.01; done; echo after; exit 0");
  StartDaemon();
  coordinator_.Assign({Assign("s", 1)});
  const ProcessIdentity process = ProcessIn({"s", 1});
  ASSERT_TRUE(Eventually([&] { return coordinator_.log({"s", 1}) == "before\n"; }));
  const size_t registrations = coordinator_.registrations().size();
  coordinator_.Stop();
  std::ofstream(absl::StrCat(root_, "/worker/tasks/s.1/go")).put('\n');
  ASSERT_TRUE(Eventually([&] { return !IsAlive(process); }));  // it ends while nobody listens
  coordinator_.Start();
  const absl::Time restarted_at = absl::Now();
  EXPECT_EQ(ExitAt(0).exit_code(), 0);
  EXPECT_EQ(coordinator_.log({"s", 1}), "before\nafter\n");
  EXPECT_LT(absl::Now() - restarted_at, absl::Seconds(3));
  EXPECT_TRUE(Eventually([&] { return coordinator_.registrations().size() > registrations; }));
  EXPECT_EQ(coordinator_.exits().size(), 1u);
}

TEST_F(WorkerClusterTest, AWorkerThatWasForgottenRegistersWithItsTasks) {
  StartDaemon();
  coordinator_.Assign({Assign("s", 1)});
  const ProcessIdentity process = ProcessIn({"s", 1});
  const size_t registrations = coordinator_.registrations().size();
  coordinator_.ForgetWorkers();
  ASSERT_TRUE(Eventually([&] { return coordinator_.registrations().size() > registrations; }));
  const v1::RegisterWorkerRequest last = coordinator_.registrations().back();
  ASSERT_EQ(last.running_size(), 1);
  EXPECT_EQ(last.running(0).pid(), process.pid);
  EXPECT_TRUE(IsAlive(process));
}

TEST_F(WorkerClusterTest, ALostLeaseEndsItsTasks) {
  coordinator_.set_lease_ttl(300);
  StartDaemon();
  coordinator_.Assign({Assign("s", 1)});
  const ProcessIdentity process = ProcessIn({"s", 1});
  absl::SleepFor(absl::Milliseconds(400));
  EXPECT_TRUE(IsAlive(process));  // while heartbeats are answered
  coordinator_.set_deaf(true);
  EXPECT_TRUE(Eventually([&] { return !IsAlive(process); }));
  EXPECT_TRUE(ExitAt(0).killed_by_worker());
  // The same placement, still assigned, is not begun a second time; a new one is.
  coordinator_.set_deaf(false);
  coordinator_.Assign({Assign("s", 1), Assign("s2", 2)});
  ProcessIn({"s2", 2});
  EXPECT_EQ(coordinator_.exits().size(), 1u);
}

TEST_F(WorkerClusterTest, AMemoryLimitIsKept) {
  Script("teacher", "x=$(head -c 60000000 /dev/zero | tr '\\0' 'x'); echo big; sleep 1000");
  StartDaemon();
  v1::Assignment assignment = Assign("t", 1, "teacher");
  assignment.set_memory_limit_bytes(30 << 20);
  coordinator_.Assign({assignment});
  const v1::TaskExit exit = ExitAt(0);
  EXPECT_EQ(exit.signal(), SIGKILL);
  EXPECT_FALSE(exit.killed_by_worker());
  EXPECT_NE(exit.message().find("its limit is 30 MiB"), std::string::npos) << exit.message();
}

TEST_F(WorkerClusterTest, SigtermStopsEverything) {
  StartDaemon();
  coordinator_.Assign({Assign("s", 1)});
  const ProcessIdentity process = ProcessIn({"s", 1});
  EXPECT_EQ(KillDaemon(SIGTERM).exit_code, 0);
  EXPECT_FALSE(IsAlive(process));
  EXPECT_TRUE(ExitAt(0).killed_by_worker());
  EXPECT_EQ(coordinator_.exits_before_stop(), 0) << "it says that it ends before its tasks do";
}

TEST_F(WorkerClusterTest, AStoppedProcessIsKilledWhenWithdrawn) {
  StartDaemon();
  coordinator_.Assign({Assign("s", 1)});
  const ProcessIdentity process = ProcessIn({"s", 1});
  kill(process.pid, SIGSTOP);
  // Of two pending signals the lower one, SIGTERM, would come first.
  ASSERT_TRUE(Eventually([&] {
    std::ifstream status(absl::StrCat("/proc/", process.pid, "/status"));
    for (std::string line; std::getline(status, line);) {
      if (line.rfind("State:", 0) == 0) return line.find('T') != std::string::npos;
    }
    return false;
  }));
  coordinator_.Assign({});
  EXPECT_EQ(ExitAt(0).signal(), SIGKILL);
  EXPECT_FALSE(IsAlive(process));
}

TEST_F(WorkerClusterTest, AnUnreportedExitIsNotRepeatedByTheNextLife) {
  Script("student", "exit 5");
  StartDaemon({"RETORT_FAULT=worker.before_exit_report:1"});
  coordinator_.Assign({Assign("s", 1)});
  const auto exit = WaitProcess(daemon_, absl::Seconds(10));
  ASSERT_TRUE(exit.ok()) << exit.status();
  EXPECT_EQ(exit->signal, SIGKILL);
  daemon_ = 0;
  coordinator_.Assign({});
  StartDaemon();
  ASSERT_TRUE(Eventually([&] { return coordinator_.registrations().size() >= 2; }));
  EXPECT_EQ(coordinator_.registrations().back().running_size(), 0);
}

TEST_F(WorkerClusterTest, ASecondDaemonOnTheSameFolderIsRefused) {
  StartDaemon();
  ASSERT_TRUE(Eventually([&] { return !coordinator_.registrations().empty(); }));
  const pid_t first = daemon_;
  StartDaemon();
  const auto exit = WaitProcess(daemon_, absl::Seconds(10));
  ASSERT_TRUE(exit.ok()) << exit.status();
  EXPECT_EQ(exit->exit_code, 1);
  daemon_ = first;
}

}  // namespace
}  // namespace retort::worker
