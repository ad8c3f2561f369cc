#include "cli/local/daemon_process.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>

#include <cerrno>

#include "common/status.h"
#include "spdlog/spdlog.h"

namespace retort::cli {
namespace {

constexpr off_t kMaxLogBytes = 16 << 20;

void SetAsideIfLarge(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) == 0 && info.st_size > kMaxLogBytes) rename(path.c_str(), (path + ".old").c_str());
}

}  // namespace

void DaemonProcess::Start(const std::vector<std::string>& argv, absl::Time now) {
  policy_.Started(now);
  SetAsideIfLarge(log_path_);
  const UniqueFd log(open(log_path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  SpawnOptions options;
  options.argv = argv;
  options.environment = EnvironmentWith({});
  options.stdout_fd = log.get();
  options.stderr_fd = log.get();
  options.die_with_thread = true;
  const absl::StatusOr<ChildProcess> child = SpawnProcess(options);
  if (!child.ok()) {
    spdlog::error("daemon_not_started name={} error=\"{}\"", name_, child.status().ToString());
    last_exit_was_its_own_ = true;
    start_at_ = policy_.Ended(now);
    return;
  }
  pid_ = child->pid;
  spdlog::info("daemon_started name={} pid={}", name_, pid_);
}

void DaemonProcess::Ended(const ProcessExit& exit, absl::Time now) {
  spdlog::warn("daemon_ended name={} pid={} how=\"{}\"", name_, pid_, exit.ToString());
  pid_ = 0;
  last_exit_was_its_own_ = exit.signal == 0;
  start_at_ = policy_.Ended(now);
  proven_ = proven_ || policy_.last_life_was_long();
}

void DaemonProcess::Stop(absl::Duration grace) {
  if (pid_ == 0) return;
  kill(pid_, SIGTERM);
  absl::StatusOr<ProcessExit> exit = WaitProcess(pid_, grace);
  if (absl::IsDeadlineExceeded(exit.status())) {
    spdlog::warn("daemon_killed name={} pid={} reason=\"did not end after SIGTERM\"", name_, pid_);
    kill(pid_, SIGKILL);
    exit = WaitProcess(pid_, grace);
  }
  spdlog::info("daemon_stopped name={} pid={} how=\"{}\"", name_, pid_,
               exit.ok() ? exit->ToString() : exit.status().ToString());
  pid_ = 0;
}

}  // namespace retort::cli
