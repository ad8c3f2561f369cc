// One daemon under supervision.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "cli/local/restart_policy.h"
#include "common/process.h"

namespace retort::cli {

// Not thread-safe.
class DaemonProcess {
 public:
  DaemonProcess(std::string name, std::string log_path) : name_(std::move(name)), log_path_(std::move(log_path)) {}

  // Starts it, its output appended to the log, which is set aside when it has grown over 16 MiB. A program that cannot
  // be started counts as one that died at once.
  void Start(const std::vector<std::string>& argv, absl::Time now);
  // It has ended.
  void Ended(const ProcessExit& exit, absl::Time now);
  // SIGTERM, and SIGKILL when it has not ended after `grace`; reaps it.
  void Stop(absl::Duration grace);

  const std::string& name() const { return name_; }
  const std::string& log_path() const { return log_path_; }
  pid_t pid() const { return pid_; }  // 0: not running
  absl::Time start_at() const { return start_at_; }
  int quick_deaths() const { return policy_.quick_deaths(); }
  // Whether it ever lived for a while.
  bool proven() const { return proven_; }
  bool last_exit_was_its_own() const { return last_exit_was_its_own_; }

 private:
  const std::string name_;
  const std::string log_path_;
  RestartPolicy policy_;
  pid_t pid_ = 0;
  absl::Time start_at_ = absl::InfinitePast();  // when it may be started
  bool proven_ = false;
  bool last_exit_was_its_own_ = false;  // it exited, no signal ended it
};

}  // namespace retort::cli
