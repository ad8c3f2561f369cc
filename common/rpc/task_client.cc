#include "common/rpc/task_client.h"

#include <grpcpp/client_context.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "common/rpc/retry.h"
#include "common/status.h"
#include "common/text.h"
#include "spdlog/spdlog.h"

namespace retort {
namespace {

constexpr size_t kMaxQueuedLosses = 65'536;
constexpr size_t kMaxLossesPerReport = 1'000;
constexpr absl::Duration kReportInterval = absl::Milliseconds(200);
// Also without news: a report keeps the task's sample leases alive and brings the gang's generation.
constexpr absl::Duration kKeepAliveInterval = absl::Seconds(1);
constexpr absl::Duration kReportTimeout = absl::Seconds(5);
// The coordinator answers a waiting JoinGang with DEADLINE_EXCEEDED before this.
constexpr absl::Duration kJoinAttemptTimeout = absl::Seconds(40);
constexpr absl::Duration kFlushTimeout = absl::Seconds(60);
constexpr size_t kMaxFailureMessageBytes = 16 << 10;
constexpr char kUnreadableArtifact[] = "retort/unreadable_artifact_id";  // payload of a status

void RaiseTo(std::atomic<uint64_t>& value, uint64_t at_least) {
  uint64_t seen = value.load();
  while (seen < at_least && !value.compare_exchange_weak(seen, at_least)) {
  }
}

}  // namespace

void ExitFenced(const v1::TaskRef& ref, absl::string_view reason) {
  spdlog::warn("task_fenced task_id={} epoch={} reason=\"{}\"", ref.task_id(), ref.epoch(),
               std::string(reason.data(), reason.size()));
  _exit(kTaskExitFenced);
}

void ExitIfFenced(const v1::TaskRef& ref, const absl::Status& status) {
  if (absl::IsFailedPrecondition(status)) ExitFenced(ref, status.message());
}

v1::FailureCause FailureCauseOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnimplemented:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kResourceExhausted:
      return v1::FAILURE_CAUSE_USER_ERROR;
    default:
      return v1::FAILURE_CAUSE_INFRASTRUCTURE;
  }
}

absl::Status WithUnreadableArtifact(absl::Status error, absl::string_view artifact_id) {
  if (!error.ok()) error.SetPayload(kUnreadableArtifact, absl::Cord(artifact_id));
  return error;
}

TaskContext::TaskContext(TaskFlags flags, std::shared_ptr<grpc::Channel> channel)
    : flags_(std::move(flags)),
      channel_(std::move(channel)),
      tasks_(v1::TaskService::NewStub(channel_)),
      rendezvous_(v1::RendezvousService::NewStub(channel_)) {}

absl::StatusOr<std::unique_ptr<TaskContext>> TaskContext::Open(TaskFlags flags) {
  ASSIGN_OR_RETURN(std::shared_ptr<grpc::Channel> channel, OpenChannel(flags.channel));
  auto context = std::unique_ptr<TaskContext>(new TaskContext(std::move(flags), std::move(channel)));
  v1::GetTaskRequest request;
  *request.mutable_ref() = context->ref();
  auto task = UnaryWithRetry<v1::GetTaskResponse>("GetTask", RetryOptions{},
                                                  [&](grpc::ClientContext* rpc, v1::GetTaskResponse* response) {
                                                    return context->tasks_->GetTask(rpc, request, response);
                                                  });
  ExitIfFenced(context->ref(), task.status());
  if (absl::IsNotFound(task.status())) ExitFenced(context->ref(), task.status().message());
  ASSIGN_OR_RETURN(context->task_, std::move(task));
  context->reporter_ = std::thread([raw = context.get()] { raw->ReportLoop(); });
  return context;
}

TaskContext::~TaskContext() { StopReporting(); }

void TaskContext::StopReporting() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
    if (report_in_flight_ != nullptr) report_in_flight_->TryCancel();
  }
  if (reporter_.joinable()) reporter_.join();
}

void TaskContext::ReportProgress(v1::Progress progress) {
  absl::MutexLock lock(&mu_);
  progress_ = std::move(progress);
  progress_changed_ = true;
}

void TaskContext::ReportLoss(v1::LossPoint point) {
  absl::MutexLock lock(&mu_);
  const auto has_room = [this] {
    mu_.AssertHeld();
    return losses_.size() < kMaxQueuedLosses || stopping_;
  };
  mu_.Await(absl::Condition(&has_room));
  losses_.push_back(std::move(point));
}

absl::Status TaskContext::FlushLosses(absl::Duration timeout) {
  absl::MutexLock lock(&mu_);
  const auto delivered = [this] {
    mu_.AssertHeld();
    return losses_.empty();
  };
  flushing_ = true;
  const bool in_time = mu_.AwaitWithTimeout(absl::Condition(&delivered), timeout);
  flushing_ = false;
  if (!in_time) {
    return absl::DeadlineExceededError(absl::StrCat("deliver ", losses_.size(),
                                                    " loss points: the coordinator did not take them for ",
                                                    absl::FormatDuration(timeout)));
  }
  return absl::OkStatus();
}

void TaskContext::ReportLoop() {
  absl::Duration pause = kReportInterval;
  bool reached = true;
  while (true) {
    v1::ReportProgressRequest request;
    grpc::ClientContext rpc;
    {
      absl::MutexLock lock(&mu_);
      const auto has_news = [this] {
        mu_.AssertHeld();
        return progress_changed_ || !losses_.empty() || stopping_;
      };
      mu_.AwaitWithTimeout(absl::Condition(&has_news), kKeepAliveInterval);
      if (stopping_) return;
      *request.mutable_progress() = progress_;
      progress_changed_ = false;
      const size_t count = std::min(losses_.size(), kMaxLossesPerReport);
      for (size_t i = 0; i < count; ++i) *request.add_new_losses() = losses_[i];
      report_in_flight_ = &rpc;
    }
    *request.mutable_ref() = ref();
    rpc.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(kReportTimeout));
    v1::ReportProgressResponse response;
    const absl::Status status = FromGrpc(tasks_->ReportProgress(&rpc, request, &response));
    absl::MutexLock lock(&mu_);
    report_in_flight_ = nullptr;
    if (stopping_ && absl::IsCancelled(status)) return;
    ExitIfFenced(ref(), status);
    if (status.ok()) {
      losses_.erase(losses_.begin(), losses_.begin() + request.new_losses_size());
      RaiseTo(gang_generation_, response.gang_generation());
      pause = kReportInterval;
    } else {
      progress_changed_ = true;
      pause = std::min(pause * 2, kKeepAliveInterval);
    }
    if (status.ok() != reached) {
      reached = status.ok();
      if (reached) {
        spdlog::info("coordinator_reached task_id={}", ref().task_id());
      } else {
        spdlog::warn("coordinator_unreachable task_id={} error=\"{}\"", ref().task_id(), status.ToString());
      }
    }
    const auto in_a_hurry = [this, reached] {
      mu_.AssertHeld();
      return stopping_ || (flushing_ && reached);
    };
    mu_.AwaitWithTimeout(absl::Condition(&in_a_hurry), pause);
  }
}

absl::Status TaskContext::RegisterCheckpoint(const v1::Checkpoint& checkpoint) {
  v1::RegisterCheckpointRequest request;
  *request.mutable_ref() = ref();
  *request.mutable_checkpoint() = checkpoint;
  const auto response = UnaryWithRetry<v1::RegisterCheckpointResponse>(
      "RegisterCheckpoint", RetryOptions{}, [&](grpc::ClientContext* rpc, v1::RegisterCheckpointResponse* reply) {
        return tasks_->RegisterCheckpoint(rpc, request, reply);
      });
  ExitIfFenced(ref(), response.status());
  return response.status();
}

absl::StatusOr<v1::JoinGangResponse> TaskContext::JoinGang(const std::string& address, int64_t completed_steps,
                                                           uint64_t last_generation, absl::Duration timeout) {
  v1::JoinGangRequest request;
  *request.mutable_ref() = ref();
  request.set_address(address);
  request.set_completed_steps(completed_steps);
  request.set_last_generation(last_generation);
  const auto joined =
      UnaryWithRetry<v1::JoinGangResponse>("JoinGang", RetryOptions{.total = timeout, .attempt = kJoinAttemptTimeout},
                                           [&](grpc::ClientContext* rpc, v1::JoinGangResponse* response) {
                                             return rendezvous_->JoinGang(rpc, request, response);
                                           });
  ExitIfFenced(ref(), joined.status());
  if (joined.ok()) RaiseTo(gang_generation_, joined->generation());
  return joined;
}

absl::Status TaskContext::Complete(const v1::TaskResult& result) {
  RETURN_IF_ERROR(FlushLosses(kFlushTimeout));
  // A report that arrived after the task is done would be refused as fenced.
  StopReporting();
  v1::CompleteTaskRequest request;
  *request.mutable_ref() = ref();
  *request.mutable_result() = result;
  const auto response = UnaryWithRetry<v1::CompleteTaskResponse>(
      "CompleteTask", RetryOptions{}, [&](grpc::ClientContext* rpc, v1::CompleteTaskResponse* reply) {
        return tasks_->CompleteTask(rpc, request, reply);
      });
  ExitIfFenced(ref(), response.status());
  return response.status();
}

absl::Status TaskContext::Fail(const absl::Status& failure) {
  StopReporting();
  v1::FailTaskRequest request;
  *request.mutable_ref() = ref();
  request.set_cause(FailureCauseOf(failure));
  request.set_message(ValidUtf8(failure.message(), kMaxFailureMessageBytes));
  if (const auto artifact_id = failure.GetPayload(kUnreadableArtifact); artifact_id.has_value())
    request.set_unreadable_artifact_id(std::string(*artifact_id));
  const auto response = UnaryWithRetry<v1::FailTaskResponse>(
      "FailTask", RetryOptions{},
      [&](grpc::ClientContext* rpc, v1::FailTaskResponse* reply) { return tasks_->FailTask(rpc, request, reply); });
  ExitIfFenced(ref(), response.status());
  return response.status();
}

}  // namespace retort
