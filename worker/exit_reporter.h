// Tells the coordinator of every task's end, until it has heard.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "retort/v1/worker.pb.h"

namespace retort::worker {

// Thread-safe. One thread of its own.
class ExitReporter {
 public:
  struct Options {
    // Delivers one report. What IsRetryable (common/rpc/retry.h) says and kNotFound (the worker is not registered) are
    // tried again until the reporter is stopped; any other error ends it.
    std::function<absl::Status(const v1::TaskExit&)> send;
    // Called before each attempt, so that the log is whole when the end is known; may block for a while.
    std::function<void(const v1::TaskExit&)> before_send;
    // Called once the report is acknowledged or refused for good.
    std::function<void(const v1::TaskExit&)> after_send;
  };
  explicit ExitReporter(Options options);
  ~ExitReporter();
  ExitReporter(const ExitReporter&) = delete;
  ExitReporter& operator=(const ExitReporter&) = delete;

  // Queues a report; never blocks. There are at most as many as there were tasks.
  void Report(const v1::TaskExit& exit);
  // Waits until all reports are delivered. False: some are not.
  bool Drain(absl::Duration timeout);

 private:
  void Loop();

  const Options options_;
  std::mutex mu_;
  std::condition_variable changed_;
  std::deque<v1::TaskExit> queue_;  // the front one is being delivered
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace retort::worker
