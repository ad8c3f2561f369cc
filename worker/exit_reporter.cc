#include "worker/exit_reporter.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "common/fault.h"
#include "common/rpc/retry.h"
#include "spdlog/spdlog.h"

namespace retort::worker {
namespace {

constexpr std::chrono::milliseconds kFirstBackoff(50);
constexpr std::chrono::milliseconds kMaxBackoff(500);

// kNotFound: a coordinator that was restarted does not know this worker before it has registered again.
bool IsTransient(const absl::Status& status) { return IsRetryable(status) || absl::IsNotFound(status); }

}  // namespace

ExitReporter::ExitReporter(Options options) : options_(std::move(options)), thread_([this] { Loop(); }) {}

ExitReporter::~ExitReporter() {
  {
    std::lock_guard<std::mutex> lock(mu_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void ExitReporter::Report(const v1::TaskExit& exit) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    queue_.push_back(exit);
  }
  changed_.notify_all();
}

bool ExitReporter::Drain(absl::Duration timeout) {
  std::unique_lock<std::mutex> lock(mu_);
  return changed_.wait_for(lock, absl::ToChronoMilliseconds(timeout), [&] { return queue_.empty(); });
}

void ExitReporter::Loop() {
  std::chrono::milliseconds backoff = kFirstBackoff;
  std::unique_lock<std::mutex> lock(mu_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    const v1::TaskExit exit = queue_.front();
    lock.unlock();
    options_.before_send(exit);
    MAYBE_FAULT("worker.before_exit_report");
    const absl::Status status = options_.send(exit);
    if (IsTransient(status)) {
      lock.lock();
      changed_.wait_for(lock, backoff, [&] { return stopping_; });
      backoff = std::min(backoff * 2, kMaxBackoff);
      continue;
    }
    if (!status.ok()) {
      spdlog::warn("task_exit_refused task_id={} epoch={} error=\"{}\"", exit.ref().task_id(), exit.ref().epoch(),
                   status.ToString());
    }
    options_.after_send(exit);
    backoff = kFirstBackoff;
    lock.lock();
    queue_.pop_front();
    changed_.notify_all();
  }
}

}  // namespace retort::worker
