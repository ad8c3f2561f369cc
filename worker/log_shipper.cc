#include "worker/log_shipper.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/rpc/retry.h"
#include "common/status.h"
#include "spdlog/spdlog.h"

namespace retort::worker {
namespace {

constexpr int64_t kMaxPieceBytes = 256 << 10;
// Lets lines gather, so that a task that prints each of them alone costs few calls.
constexpr auto kGatherTime = std::chrono::milliseconds(50);
constexpr auto kFirstBackoff = std::chrono::milliseconds(100);
constexpr auto kMaxBackoff = std::chrono::milliseconds(500);
constexpr auto kFullDiskBackoff = std::chrono::seconds(5);

absl::StatusOr<std::string> ReadPiece(const std::string& path, int64_t offset_bytes, int64_t size_bytes) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("open ", path), errno);
  std::string piece(static_cast<size_t>(size_bytes), '\0');
  const ssize_t got = pread(fd.get(), piece.data(), piece.size(), offset_bytes);
  if (got <= 0) return ErrnoStatus(absl::StrCat("read ", path), got == 0 ? EIO : errno);
  piece.resize(static_cast<size_t>(got));
  return piece;
}

bool IsTransient(const absl::Status& status) { return IsRetryable(status) || absl::IsResourceExhausted(status); }

}  // namespace

LogShipper::LogShipper(Send send) : send_(std::move(send)), thread_([this] { Loop(); }) {}

LogShipper::~LogShipper() {
  {
    std::lock_guard<std::mutex> lock(mu_);
    stopping_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void LogShipper::Grown(const TaskKey& task, const std::string& path, int64_t size_bytes) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    Log& log = logs_[task];
    log.path = path;
    log.size_bytes = std::max(log.size_bytes, size_bytes);
  }
  changed_.notify_all();
}

bool LogShipper::Flush(const TaskKey& task, absl::Duration timeout) {
  std::unique_lock<std::mutex> lock(mu_);
  if (logs_.count(task) == 0) return true;
  logs_[task].urgent = true;
  changed_.notify_all();
  const auto sent = [&] {
    const auto log = logs_.find(task);
    return log == logs_.end() || log->second.sent_bytes >= log->second.size_bytes;
  };
  const auto given_up = [&] {
    const auto log = logs_.find(task);
    return log != logs_.end() && log->second.given_up;
  };
  changed_.wait_for(lock, absl::ToChronoMilliseconds(timeout), [&] { return sent() || given_up() || stopping_; });
  return sent();
}

void LogShipper::Forget(const TaskKey& task) {
  std::lock_guard<std::mutex> lock(mu_);
  logs_.erase(task);
}

std::pair<const TaskKey, LogShipper::Log>* LogShipper::NextPending() {
  const auto pending = [](const Log& log) { return !log.given_up && log.sent_bytes < log.size_bytes; };
  for (auto it = logs_.upper_bound(last_); it != logs_.end(); ++it) {
    if (pending(it->second)) return &*it;
  }
  for (auto& entry : logs_) {
    if (pending(entry.second)) return &entry;
  }
  return nullptr;
}

void LogShipper::Loop() {
  std::chrono::milliseconds backoff = kFirstBackoff;
  std::unique_lock<std::mutex> lock(mu_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || NextPending() != nullptr; });
    if (stopping_) return;
    if (!NextPending()->second.urgent) {
      changed_.wait_for(lock, kGatherTime, [&] {
        return stopping_ ||
               std::any_of(logs_.begin(), logs_.end(), [](const auto& entry) { return entry.second.urgent; });
      });
      if (stopping_) return;
    }
    auto* pending = NextPending();
    if (pending == nullptr) continue;
    const TaskKey task = pending->first;
    last_ = task;
    const std::string path = pending->second.path;
    const int64_t offset = pending->second.sent_bytes;
    const int64_t size = std::min(kMaxPieceBytes, pending->second.size_bytes - offset);

    lock.unlock();
    absl::StatusOr<std::string> piece = ReadPiece(path, offset, size);
    const absl::StatusOr<int64_t> next = piece.ok() ? send_(task, offset, *std::move(piece)) : piece.status();
    lock.lock();

    const auto log = logs_.find(task);
    if (log == logs_.end()) continue;  // forgotten meanwhile
    if (next.ok()) {
      // A coordinator that lost its copy asks for earlier bytes; one that knows more than this file can hold is not
      // believed.
      log->second.sent_bytes = std::clamp<int64_t>(*next, 0, log->second.size_bytes);
      backoff = kFirstBackoff;
      if (*next == offset) {
        log->second.given_up = true;
        spdlog::warn("task_log_given_up task_id={} epoch={} error=\"the coordinator takes no more\"", task.task_id,
                     task.epoch);
      }
    } else if (!IsTransient(next.status())) {
      log->second.given_up = true;
      spdlog::warn("task_log_given_up task_id={} epoch={} error=\"{}\"", task.task_id, task.epoch,
                   next.status().ToString());
    } else {
      changed_.wait_for(lock, absl::IsResourceExhausted(next.status()) ? kFullDiskBackoff : backoff,
                        [&] { return stopping_; });
      backoff = std::min<std::chrono::milliseconds>(backoff * 2, kMaxBackoff);
    }
    changed_.notify_all();
  }
}

}  // namespace retort::worker
