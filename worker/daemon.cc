#include "worker/daemon.h"

#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <memory>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/id.h"
#include "common/status.h"
#include "common/version.h"
#include "spdlog/spdlog.h"
#include "worker/coordinator_link.h"
#include "worker/exit_reporter.h"
#include "worker/leftovers.h"
#include "worker/log_shipper.h"
#include "worker/resources.h"
#include "worker/state_folder.h"
#include "worker/task_folders.h"
#include "worker/task_runner.h"

namespace retort::worker {
namespace {

constexpr absl::Duration kLeftoverTimeout = absl::Seconds(5);
// An end is told even when the log before it could not be sent for this long.
constexpr absl::Duration kLogTimeout = absl::Seconds(2);
constexpr absl::Duration kStopTimeout = absl::Seconds(5);
constexpr absl::Duration kDrainTimeout = absl::Seconds(2);

std::string Hostname() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

// Tasks run in folders of their own, so what they are handed must not be relative.
ChannelOptions WithAbsolutePaths(ChannelOptions options) {
  for (std::string* path : {&options.token_file, &options.tls_ca, &options.tls_cert, &options.tls_key}) {
    if (!path->empty()) *path = std::filesystem::absolute(*path).string();
  }
  return options;
}

// Ties runner, log shipper, exit reporter and link together.
class Daemon {
 public:
  static absl::StatusOr<std::unique_ptr<Daemon>> Start(const DaemonOptions& options, StateFolder folder);
  ~Daemon();

  // Stops the tasks, tells the coordinator, as far as it listens.
  void StopTasks();
  absl::Status refusal() {
    std::lock_guard<std::mutex> lock(mu_);
    return refusal_;
  }

 private:
  explicit Daemon(StateFolder folder) : folder_(std::move(folder)) {}
  void TaskFinished(const v1::TaskExit& exit);
  void CleanFolders();

  StateFolder folder_;
  std::unique_ptr<CoordinatorLink> link_;
  std::unique_ptr<LogShipper> shipper_;
  std::unique_ptr<ExitReporter> reporter_;
  std::unique_ptr<TaskRunner> runner_;
  std::atomic<bool> stopping_{false};
  std::mutex mu_;
  absl::Status refusal_;
};

absl::StatusOr<std::unique_ptr<Daemon>> Daemon::Start(const DaemonOptions& options, StateFolder folder) {
  const ChannelOptions channel_options = WithAbsolutePaths(options.channel);
  ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel, OpenChannel(channel_options));
  auto owned = std::unique_ptr<Daemon>(new Daemon(std::move(folder)));
  Daemon* daemon = owned.get();

  // No task exists before the link brings the first assignment, so nothing below is used before all of it is there.
  daemon->shipper_ =
      std::make_unique<LogShipper>([daemon](const TaskKey& task, int64_t offset_bytes, std::string data) {
        return daemon->link_->AppendTaskLog(RefOf(task), offset_bytes, std::move(data));
      });
  daemon->reporter_ = std::make_unique<ExitReporter>(ExitReporter::Options{
      .send = [daemon](const v1::TaskExit& exit) { return daemon->link_->ReportTaskExit(exit); },
      .before_send = [daemon](const v1::TaskExit& exit) { daemon->shipper_->Flush(KeyOf(exit.ref()), kLogTimeout); },
      .after_send = [daemon](const v1::TaskExit& exit) { daemon->TaskFinished(exit); },
  });
  TaskRunnerOptions runner_options;
  runner_options.launch = {.bin_folder = std::filesystem::absolute(options.bin_folder).string(),
                           .tasks_folder = daemon->folder_.tasks_folder(),
                           .cache_folder = daemon->folder_.cache_folder(),
                           .state_folder = daemon->folder_.path,
                           .channel = channel_options};
  runner_options.on_log_grown = [daemon](const TaskKey& task, const std::string& path, int64_t size_bytes) {
    daemon->shipper_->Grown(task, path, size_bytes);
  };
  runner_options.on_exit = [daemon](const v1::TaskExit& exit) { daemon->reporter_->Report(exit); };
  ASSIGN_OR_RETURN(daemon->runner_, TaskRunner::Start(std::move(runner_options)));

  CoordinatorLinkOptions link_options;
  link_options.worker_id = daemon->folder_.worker_id;
  link_options.incarnation_id = NewRequestId();
  link_options.hostname = Hostname();
  link_options.version = std::string(kVersion);
  link_options.resources = DetectResources(options.cpu_slots);
  link_options.running = [daemon] { return daemon->runner_->Running(); };
  link_options.on_assignments = [daemon](std::vector<v1::Assignment> assignments) {
    if (!daemon->stopping_) daemon->runner_->SetAssignments(std::move(assignments));
  };
  link_options.on_lease_lost = [daemon] { daemon->runner_->StopAll(absl::ZeroDuration()); };
  link_options.on_refused = [daemon](const absl::Status& status) {
    {
      std::lock_guard<std::mutex> lock(daemon->mu_);
      daemon->refusal_ = status;
    }
    kill(getpid(), SIGTERM);
  };
  spdlog::info("worker_started worker_id={} pid={} state_dir={} coordinator={} cpu_slots={} gpus={}",
               link_options.worker_id, getpid(), daemon->folder_.path, channel_options.address,
               link_options.resources.cpu_slots(), link_options.resources.gpus_size());
  daemon->CleanFolders();
  daemon->link_ = std::make_unique<CoordinatorLink>(std::move(channel), std::move(link_options));
  return owned;
}

Daemon::~Daemon() {
  if (link_ != nullptr) link_->Stop();
  runner_.reset();
  reporter_.reset();
  shipper_.reset();
}

void Daemon::StopTasks() {
  stopping_ = true;
  link_->AnnounceStop();
  runner_->StopAll(absl::Seconds(2));
  if (!runner_->WaitUntilIdle(kStopTimeout)) spdlog::warn("tasks_still_running worker_id={}", folder_.worker_id);
  if (!reporter_->Drain(kDrainTimeout)) spdlog::warn("task_exits_unreported worker_id={}", folder_.worker_id);
}

void Daemon::TaskFinished(const v1::TaskExit& exit) {
  shipper_->Forget(KeyOf(exit.ref()));
  runner_->Acknowledge(KeyOf(exit.ref()));
  CleanFolders();
}

void Daemon::CleanFolders() {
  const auto in_use = [this] { return runner_->FoldersInUse(); };
  const absl::Status status = CleanTaskFolders(folder_.tasks_folder(), in_use, TaskFolderLimits{});
  if (!status.ok()) spdlog::warn("task_folders_not_cleaned error=\"{}\"", status.ToString());
}

}  // namespace

absl::Status RunDaemon(const DaemonOptions& options) {
  // Before any thread exists, so that all inherit it and only sigwait takes these.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);

  ASSIGN_OR_RETURN(StateFolder folder, OpenStateFolder(options.state_dir));
  // What tasks leave behind when they end becomes a child of this process and is reaped here.
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  const int leftovers = KillMarkedProcesses({absl::StrCat(kTaskOfVariable, "=", folder.path)}, kLeftoverTimeout);
  if (leftovers > 0) spdlog::warn("leftovers_killed count={}", leftovers);

  ASSIGN_OR_RETURN(const std::unique_ptr<Daemon> daemon, Daemon::Start(options, std::move(folder)));
  int signal = 0;
  while (sigwait(&signals, &signal) != 0) {
  }
  spdlog::info("worker_stopping signal={}", signal);
  daemon->StopTasks();
  return daemon->refusal();
}

}  // namespace retort::worker
