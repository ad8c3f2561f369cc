// Sends the logs of tasks to the coordinator as they grow.
//
// The log files are the buffer: a coordinator that is away costs no memory, and what it missed follows when it is back.
// Replay is harmless, because each piece carries its offset and the answer says where to go on.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "retort/v1/worker.pb.h"
#include "worker/reconcile.h"

namespace retort::worker {

// Thread-safe. One thread of its own.
class LogShipper {
 public:
  // Sends one piece and returns the offset to go on at. What IsRetryable (common/rpc/retry.h) says and
  // kResourceExhausted (the coordinator's disk is full) are tried again, the latter slowly; any other error ends the
  // shipping of that log.
  using Send = std::function<absl::StatusOr<int64_t>(const TaskKey& task, int64_t offset_bytes, std::string data)>;

  explicit LogShipper(Send send);
  ~LogShipper();
  LogShipper(const LogShipper&) = delete;
  LogShipper& operator=(const LogShipper&) = delete;

  // The log at `path` now holds `size_bytes`.
  void Grown(const TaskKey& task, const std::string& path, int64_t size_bytes);
  // Waits until all that Grown told of is sent or given up, or `timeout` is over. False: some was not sent.
  bool Flush(const TaskKey& task, absl::Duration timeout);
  // What is not sent yet will not be.
  void Forget(const TaskKey& task);

 private:
  struct Log {
    std::string path;
    int64_t size_bytes = 0;
    int64_t sent_bytes = 0;
    bool given_up = false;
    bool urgent = false;
  };
  void Loop();
  // The task whose log has something to send; nullptr: none.
  std::pair<const TaskKey, Log>* NextPending();

  const Send send_;
  std::mutex mu_;
  std::condition_variable changed_;
  std::map<TaskKey, Log> logs_;
  TaskKey last_;  // whose turn it was, so that a chatty task does not starve the others
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace retort::worker
