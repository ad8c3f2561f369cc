#include "worker/coordinator_link.h"

#include <grpcpp/client_context.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/fault.h"
#include "common/status.h"
#include "spdlog/spdlog.h"

namespace retort::worker {
namespace {

// Until the coordinator says what it wants.
constexpr absl::Duration kDefaultHeartbeatInterval = absl::Milliseconds(150);
constexpr absl::Duration kMinHeartbeatInterval = absl::Milliseconds(10);
constexpr absl::Duration kHeartbeatTimeout = absl::Seconds(1);
constexpr absl::Duration kRegisterTimeout = absl::Seconds(2);
constexpr absl::Duration kFirstBackoff = absl::Milliseconds(50);
constexpr absl::Duration kMaxBackoff = absl::Milliseconds(200);
constexpr absl::Duration kCallTimeout = absl::Seconds(5);

void SetTimeout(grpc::ClientContext& context, absl::Duration timeout) {
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
}

bool IsFinalRefusal(const absl::Status& status) {
  return absl::IsAborted(status) || absl::IsUnauthenticated(status) || absl::IsPermissionDenied(status) ||
         absl::IsInvalidArgument(status);
}

}  // namespace

CoordinatorLink::CoordinatorLink(std::shared_ptr<grpc::Channel> channel, CoordinatorLinkOptions options)
    : options_(std::move(options)),
      stub_(v1::WorkerService::NewStub(std::move(channel))),
      heartbeat_interval_(kDefaultHeartbeatInterval),
      heartbeat_thread_([this] { HeartbeatLoop(); }),
      watch_thread_([this] { WatchLoop(); }) {}

CoordinatorLink::~CoordinatorLink() { Stop(); }

void CoordinatorLink::Stop() {
  {
    std::lock_guard<std::mutex> lock(mu_);
    stopping_ = true;
    if (watch_ != nullptr) watch_->TryCancel();
    if (heartbeat_ != nullptr) heartbeat_->TryCancel();
  }
  changed_.notify_all();
  if (heartbeat_thread_.joinable()) heartbeat_thread_.join();
  if (watch_thread_.joinable()) watch_thread_.join();
}

void CoordinatorLink::AnnounceStop() {
  announced_stop_ = true;
  const v1::HeartbeatRequest request = HeartbeatMessage();
  grpc::ClientContext context;
  SetTimeout(context, kHeartbeatTimeout);
  v1::HeartbeatResponse response;
  const absl::Status status = FromGrpc(stub_->Heartbeat(&context, request, &response));
  if (!status.ok()) spdlog::info("stop_not_announced worker_id={} error=\"{}\"", options_.worker_id, status.ToString());
}

bool CoordinatorLink::Pause(absl::Duration duration) {
  std::unique_lock<std::mutex> lock(mu_);
  return !changed_.wait_for(lock, absl::ToChronoMicroseconds(duration), [&] { return stopping_; });
}

void CoordinatorLink::RestartWatch(bool registered) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    registered_ = registered;
    if (watch_ != nullptr) watch_->TryCancel();
  }
  changed_.notify_all();
}

void CoordinatorLink::NoteOutcome(const absl::Status& status) {
  if (status.ok()) {
    told_unreachable_ = false;
  } else if (!told_unreachable_) {
    told_unreachable_ = true;
    spdlog::warn("coordinator_unreachable worker_id={} error=\"{}\"", options_.worker_id, status.ToString());
  }
}

void CoordinatorLink::HeartbeatLoop() {
  bool registered = false;
  absl::Duration backoff = kFirstBackoff;
  while (true) {
    const absl::Time sent_at = BootTime();
    const absl::Status status = registered ? Heartbeat() : Register();
    {
      std::lock_guard<std::mutex> lock(mu_);
      if (stopping_) return;
    }
    NoteOutcome(status);
    if (status.ok()) {
      lease_.Renew(sent_at);
      if (!registered) RestartWatch(true);
      registered = true;
      backoff = kFirstBackoff;
    } else {
      if (registered) RestartWatch(false);
      registered = false;
      if (IsFinalRefusal(status)) {
        options_.on_lease_lost();
        options_.on_refused(status);
        return;
      }
    }
    if (lease_.IsLostNow(BootTime())) {
      spdlog::warn("lease_lost worker_id={}", options_.worker_id);
      options_.on_lease_lost();
    }
    // A coordinator that has forgotten this worker hears from it at once.
    absl::Duration wait = absl::ZeroDuration();
    if (status.ok()) {
      wait = std::max(sent_at + heartbeat_interval_ - BootTime(), absl::ZeroDuration());
    } else if (!absl::IsNotFound(status)) {
      wait = backoff;
      backoff = std::min(backoff * 2, kMaxBackoff);
    } else {
      wait = kMinHeartbeatInterval;
    }
    if (!Pause(wait)) return;
  }
}

absl::Status CoordinatorLink::Register() {
  v1::RegisterWorkerRequest request;
  request.set_worker_id(options_.worker_id);
  request.set_incarnation_id(options_.incarnation_id);
  request.set_hostname(options_.hostname);
  request.set_version(options_.version);
  *request.mutable_resources() = options_.resources;
  for (v1::RunningTask& task : options_.running()) *request.add_running() = std::move(task);
  request.set_stopping(announced_stop_);
  grpc::ClientContext context;
  SetTimeout(context, kRegisterTimeout);
  // The coordinator may be starting just now: the call goes through as soon as it listens.
  context.set_wait_for_ready(true);
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (stopping_) return absl::CancelledError("closing");
    heartbeat_ = &context;
  }
  v1::RegisterWorkerResponse response;
  const absl::Status status = FromGrpc(stub_->RegisterWorker(&context, request, &response));
  {
    std::lock_guard<std::mutex> lock(mu_);
    heartbeat_ = nullptr;
  }
  RETURN_IF_ERROR(status);
  if (response.heartbeat_interval_millis() > 0) {
    heartbeat_interval_ = std::max(absl::Milliseconds(response.heartbeat_interval_millis()), kMinHeartbeatInterval);
  }
  if (response.lease_ttl_millis() > 0) lease_.set_ttl(absl::Milliseconds(response.lease_ttl_millis()));
  spdlog::info("worker_registered worker_id={} incarnation_id={} running={} heartbeat_interval={} lease_ttl_millis={}",
               options_.worker_id, options_.incarnation_id, request.running_size(),
               absl::FormatDuration(heartbeat_interval_), response.lease_ttl_millis());
  MAYBE_FAULT("worker.registered");
  return absl::OkStatus();
}

v1::HeartbeatRequest CoordinatorLink::HeartbeatMessage() const {
  v1::HeartbeatRequest request;
  request.set_worker_id(options_.worker_id);
  request.set_incarnation_id(options_.incarnation_id);
  for (v1::RunningTask& task : options_.running()) *request.add_running() = std::move(task);
  request.set_stopping(announced_stop_);
  return request;
}

absl::Status CoordinatorLink::Heartbeat() {
  const v1::HeartbeatRequest request = HeartbeatMessage();
  grpc::ClientContext context;
  SetTimeout(context, kHeartbeatTimeout);
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (stopping_) return absl::CancelledError("closing");
    heartbeat_ = &context;
  }
  v1::HeartbeatResponse response;
  const absl::Status status = FromGrpc(stub_->Heartbeat(&context, request, &response));
  std::lock_guard<std::mutex> lock(mu_);
  heartbeat_ = nullptr;
  return status;
}

void CoordinatorLink::WatchLoop() {
  absl::Duration backoff = kFirstBackoff;
  while (true) {
    {
      std::unique_lock<std::mutex> lock(mu_);
      changed_.wait(lock, [&] { return stopping_ || registered_; });
      if (stopping_) return;
    }
    const absl::Time opened_at = absl::Now();
    const absl::Status status = WatchOnce();
    spdlog::debug("assignments_stream_ended status=\"{}\"", status.ToString());
    if (absl::Now() - opened_at > kMaxBackoff) backoff = kFirstBackoff;
    if (!Pause(backoff)) return;
    backoff = std::min(backoff * 2, kMaxBackoff);
  }
}

absl::Status CoordinatorLink::WatchOnce() {
  grpc::ClientContext context;
  {
    std::lock_guard<std::mutex> lock(mu_);
    if (stopping_ || !registered_) return absl::CancelledError("not registered");
    watch_ = &context;
  }
  v1::WatchAssignmentsRequest request;
  request.set_worker_id(options_.worker_id);
  request.set_incarnation_id(options_.incarnation_id);
  const auto stream = stub_->WatchAssignments(&context, request);
  v1::WatchAssignmentsResponse response;
  while (stream->Read(&response)) {
    // Under the lock, so that no message of a stream that was given up is carried out after the lease was lost.
    std::lock_guard<std::mutex> lock(mu_);
    if (!registered_ || stopping_) break;
    options_.on_assignments({response.assignments().begin(), response.assignments().end()});
  }
  context.TryCancel();
  const absl::Status status = FromGrpc(stream->Finish());
  std::lock_guard<std::mutex> lock(mu_);
  watch_ = nullptr;
  return status;
}

absl::Status CoordinatorLink::ReportTaskExit(const v1::TaskExit& exit) {
  v1::ReportTaskExitRequest request;
  request.set_worker_id(options_.worker_id);
  request.set_incarnation_id(options_.incarnation_id);
  *request.mutable_exit() = exit;
  grpc::ClientContext context;
  SetTimeout(context, kCallTimeout);
  v1::ReportTaskExitResponse response;
  return FromGrpc(stub_->ReportTaskExit(&context, request, &response));
}

absl::StatusOr<int64_t> CoordinatorLink::AppendTaskLog(const v1::TaskRef& ref, int64_t offset_bytes, std::string data) {
  v1::AppendTaskLogRequest request;
  request.set_worker_id(options_.worker_id);
  *request.mutable_ref() = ref;
  request.set_offset_bytes(offset_bytes);
  request.set_data(std::move(data));
  grpc::ClientContext context;
  SetTimeout(context, kCallTimeout);
  v1::AppendTaskLogResponse response;
  RETURN_IF_ERROR(FromGrpc(stub_->AppendTaskLog(&context, request, &response)));
  return response.next_offset_bytes();
}

}  // namespace retort::worker
