// The daemon's connection to the coordinator: registration, heartbeats, assignments.
//
// Two threads. One registers, then sends a heartbeat every interval; after any failure it registers again, and when
// nothing was answered for the lease's time it says so. The other follows the stream of assignments, which it opens
// anew after every registration, because its first message repeats the whole truth.
#pragma once

#include <grpcpp/channel.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "retort/v1/worker.grpc.pb.h"
#include "worker/lease.h"

namespace retort::worker {

struct CoordinatorLinkOptions {
  std::string worker_id;
  std::string incarnation_id;
  std::string hostname;
  std::string version;
  v1::WorkerResources resources;
  std::function<std::vector<v1::RunningTask>()> running;
  std::function<void(std::vector<v1::Assignment>)> on_assignments;
  // Nobody counts on this worker's tasks any more: kill them at once.
  std::function<void()> on_lease_lost;
  // The coordinator will never take this daemon (a newer one has its id, or it is not allowed in): called once, then
  // the link is idle.
  std::function<void(const absl::Status&)> on_refused;
};

class CoordinatorLink {
 public:
  CoordinatorLink(std::shared_ptr<grpc::Channel> channel, CoordinatorLinkOptions options);
  ~CoordinatorLink();
  CoordinatorLink(const CoordinatorLink&) = delete;
  CoordinatorLink& operator=(const CoordinatorLink&) = delete;

  // Tells the coordinator that this daemon ends, so that it places nothing new here; heartbeats say so from now on.
  // Waits for the answer for at most a second.
  void AnnounceStop();

  // Ends both threads: no heartbeat is sent and no callback runs any more. The calls below still work.
  void Stop();

  // One attempt each.
  absl::Status ReportTaskExit(const v1::TaskExit& exit);
  absl::StatusOr<int64_t> AppendTaskLog(const v1::TaskRef& ref, int64_t offset_bytes, std::string data);

 private:
  void HeartbeatLoop();
  v1::HeartbeatRequest HeartbeatMessage() const;
  absl::Status Register();
  absl::Status Heartbeat();
  void WatchLoop();
  absl::Status WatchOnce();
  // False: the link is being closed.
  bool Pause(absl::Duration duration);
  void RestartWatch(bool registered);
  void NoteOutcome(const absl::Status& status);

  const CoordinatorLinkOptions options_;
  const std::unique_ptr<v1::WorkerService::Stub> stub_;

  // Of the heartbeat thread alone.
  Lease lease_;
  absl::Duration heartbeat_interval_;
  bool told_unreachable_ = false;

  std::atomic<bool> announced_stop_{false};

  std::mutex mu_;
  std::condition_variable changed_;
  bool stopping_ = false;
  bool registered_ = false;
  grpc::ClientContext* watch_ = nullptr;      // the stream in progress
  grpc::ClientContext* heartbeat_ = nullptr;  // the call in progress

  std::thread heartbeat_thread_;
  std::thread watch_thread_;
};

}  // namespace retort::worker
