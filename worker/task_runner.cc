#include "worker/task_runner.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/fault.h"
#include "common/status.h"
#include "common/text.h"
#include "spdlog/spdlog.h"
#include "worker/leftovers.h"
#include "worker/memory_use.h"

namespace retort::worker {
namespace {

constexpr int kMaxEvents = 64;
constexpr size_t kReadBytes = 64 << 10;
// Read from one task before the others have their turn.
constexpr size_t kMaxReadPerTurn = 1 << 20;
constexpr absl::Duration kIdlePoll = absl::Seconds(1);
// Where the kernel gives no pidfd, ends are looked for this often.
constexpr absl::Duration kPollWithoutPidfd = absl::Milliseconds(20);
constexpr absl::Duration kMemoryCheckInterval = absl::Milliseconds(500);
constexpr absl::Duration kSweepTimeout = absl::Seconds(1);
constexpr size_t kMaxMessageBytes = 2048;
constexpr int kExitCodeNotStarted = 127;
// The kernel's out-of-memory killer takes a task before the daemon.
constexpr char kTaskOomScore[] = "500";

}  // namespace

struct TaskRunner::Process {
  TaskKey key;
  v1::Assignment assignment;
  LaunchedTask launched;
  bool stopping = false;
  absl::Time kill_at = absl::InfiniteFuture();
  std::string killed_because;  // the worker's own reason that is the task's failure, e.g. its memory limit
};

absl::StatusOr<std::unique_ptr<TaskRunner>> TaskRunner::Start(TaskRunnerOptions options) {
  UniqueFd epoll(epoll_create1(EPOLL_CLOEXEC));
  UniqueFd wake(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!epoll.valid() || !wake.valid()) return ErrnoStatus("make descriptors for the task runner", errno);
  epoll_event event = {.events = EPOLLIN};
  event.data.fd = wake.get();
  if (epoll_ctl(epoll.get(), EPOLL_CTL_ADD, wake.get(), &event) != 0) return ErrnoStatus("watch for orders", errno);
  auto runner = std::unique_ptr<TaskRunner>(new TaskRunner(std::move(options), std::move(epoll), std::move(wake)));
  runner->thread_ = std::thread([raw = runner.get()] { raw->Loop(); });
  return runner;
}

TaskRunner::TaskRunner(TaskRunnerOptions options, UniqueFd epoll, UniqueFd wake)
    : options_(std::move(options)), epoll_(std::move(epoll)), wake_(std::move(wake)) {}

TaskRunner::~TaskRunner() {
  StopAll(absl::ZeroDuration());
  {
    std::lock_guard<std::mutex> lock(mu_);
    quitting_ = true;
  }
  Wake();
  thread_.join();
}

void TaskRunner::Wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t ignored = write(wake_.get(), &one, sizeof(one));
}

void TaskRunner::SetAssignments(std::vector<v1::Assignment> assignments) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    ordered_assignments_ = std::move(assignments);
    ++ordered_;
  }
  Wake();
}

void TaskRunner::StopAll(absl::Duration grace) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    ordered_assignments_.clear();
    ++ordered_;
    stop_ordered_ = true;
    stop_grace_ = grace;
  }
  Wake();
}

void TaskRunner::Acknowledge(const TaskKey& task) {
  {
    std::lock_guard<std::mutex> lock(mu_);
    acknowledged_.push_back(task);
  }
  Wake();
}

std::vector<v1::RunningTask> TaskRunner::Running() const {
  std::lock_guard<std::mutex> lock(mu_);
  return running_;
}

std::set<std::string> TaskRunner::FoldersInUse() const {
  std::lock_guard<std::mutex> lock(mu_);
  std::set<std::string> names;
  for (const v1::RunningTask& task : running_) names.insert(NameOf(KeyOf(task.ref())));
  for (const TaskKey& key : starting_) names.insert(NameOf(key));
  return names;
}

bool TaskRunner::WaitUntilIdle(absl::Duration timeout) const {
  const absl::Time deadline = absl::Now() + timeout;
  while (true) {
    {
      std::lock_guard<std::mutex> lock(mu_);
      if (process_count_ == 0 && applied_ == ordered_) return true;
    }
    if (absl::Now() >= deadline) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
}

void TaskRunner::Loop() {
  while (true) {
    TakeOrders();
    ApplyAssignments();
    PublishRunning();
    {
      std::lock_guard<std::mutex> lock(mu_);
      if (quitting_ && processes_.empty()) return;
    }
    epoll_event events[kMaxEvents];
    const int count = epoll_wait(epoll_.get(), events, kMaxEvents, PollMilliseconds());
    for (int i = 0; i < count; ++i) {
      if (events[i].data.fd == wake_.get()) {
        uint64_t ignored = 0;
        while (read(wake_.get(), &ignored, sizeof(ignored)) > 0) {
        }
        continue;
      }
      for (auto& [key, process] : processes_) {
        if (process->launched.output.get() == events[i].data.fd) ReadOutput(*process);
      }
    }
    ReapEnded();
    KillOverdue();
    CheckMemory();
  }
}

void TaskRunner::TakeOrders() {
  std::vector<TaskKey> acknowledged;
  bool stop = false;
  absl::Duration grace;
  {
    std::lock_guard<std::mutex> lock(mu_);
    acknowledged.swap(acknowledged_);
    if (taken_ != ordered_) assignments_ = ordered_assignments_;
    taken_ = ordered_;
    stop = std::exchange(stop_ordered_, false);
    grace = stop_grace_;
  }
  for (const TaskKey& key : acknowledged) unacknowledged_.erase(key);
  if (!stop) return;
  for (auto& [key, process] : processes_) StopTask(*process, grace);
}

void TaskRunner::ApplyAssignments() {
  std::vector<RunningView> running;
  for (const auto& [key, process] : processes_) {
    const auto& gpus = process->assignment.gpu_indices();
    running.push_back({.key = key, .gpu_indices = {gpus.begin(), gpus.end()}, .stopping = process->stopping});
  }
  const ReconcilePlan plan = Reconcile(assignments_, running, ended_);
  for (const TaskKey& key : plan.forget) {
    if (unacknowledged_.count(key) == 0) ended_.erase(key);
  }
  for (const TaskKey& key : plan.stop) StopTask(*processes_.at(key), options_.stop_grace);
  {
    std::lock_guard<std::mutex> lock(mu_);
    for (const v1::Assignment& assignment : plan.start) starting_.push_back(KeyOf(assignment.ref()));
  }
  for (const v1::Assignment& assignment : plan.start) StartTask(assignment);
}

void TaskRunner::StartTask(const v1::Assignment& assignment) {
  const TaskKey key = KeyOf(assignment.ref());
  absl::StatusOr<LaunchedTask> launched = LaunchTask(options_.launch, assignment);
  if (!launched.ok()) {
    spdlog::error("task_not_started task_id={} epoch={} error=\"{}\"", key.task_id, key.epoch,
                  launched.status().ToString());
    v1::TaskExit exit;
    *exit.mutable_ref() = assignment.ref();
    exit.set_exit_code(kExitCodeNotStarted);
    exit.set_message(ValidUtf8(absl::StrCat("could not be started: ", launched.status().message()), kMaxMessageBytes));
    ReportEnd(exit);
    return;
  }
  MAYBE_FAULT("worker.task_started");
  const pid_t pid = launched->process.pid;
  spdlog::info("task_started task_id={} epoch={} role={} pid={} threads={} gpus={}", key.task_id, key.epoch,
               assignment.role(), pid, assignment.threads(), assignment.gpu_indices_size());
  if (std::FILE* score = std::fopen(absl::StrCat("/proc/", pid, "/oom_score_adj").c_str(), "we")) {
    std::fputs(kTaskOomScore, score);
    std::fclose(score);
  }
  for (const int fd : {launched->output.get(), launched->process.pidfd.get()}) {
    epoll_event event = {.events = EPOLLIN};
    event.data.fd = fd;
    if (fd >= 0) epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event);
  }
  processes_[key] =
      std::make_unique<Process>(Process{.key = key, .assignment = assignment, .launched = *std::move(launched)});
}

void TaskRunner::StopTask(Process& process, absl::Duration grace) {
  process.stopping = true;
  const pid_t pid = process.launched.process.pid;
  const absl::Time kill_at = absl::Now() + grace;
  if (kill_at >= process.kill_at) return;
  spdlog::info("task_stopping task_id={} epoch={} pid={} grace={}", process.key.task_id, process.key.epoch, pid,
               absl::FormatDuration(grace));
  if (grace > absl::ZeroDuration()) {
    KillProcessGroup(pid, SIGTERM);
    process.kill_at = kill_at;
  } else {
    KillProcessGroup(pid, SIGKILL);
    process.kill_at = absl::InfinitePast();
  }
}

void TaskRunner::KillOverdue() {
  for (auto& [key, process] : processes_) {
    if (process->kill_at == absl::InfinitePast() || absl::Now() < process->kill_at) continue;
    spdlog::warn("task_killed task_id={} epoch={} reason=\"did not end after SIGTERM\"", key.task_id, key.epoch);
    KillProcessGroup(process->launched.process.pid, SIGKILL);
    process->kill_at = absl::InfinitePast();
  }
}

void TaskRunner::CheckMemory() {
  if (absl::Now() < next_memory_check_) return;
  next_memory_check_ = absl::Now() + kMemoryCheckInterval;
  for (auto& [key, process] : processes_) {
    const int64_t limit = process->assignment.memory_limit_bytes();
    if (limit <= 0 || process->stopping || !process->killed_because.empty()) continue;
    const int64_t used = ResidentBytesOfGroup(process->launched.process.pid);
    if (used <= limit) continue;
    process->killed_because = absl::StrCat("used ", used >> 20, " MiB of memory, its limit is ", limit >> 20, " MiB");
    spdlog::warn("task_killed task_id={} epoch={} reason=\"{}\"", key.task_id, key.epoch, process->killed_because);
    KillProcessGroup(process->launched.process.pid, SIGKILL);
  }
}

void TaskRunner::ReadOutput(Process& process) {
  char buffer[kReadBytes];
  size_t taken = 0;
  bool at_end = false;
  while (taken < kMaxReadPerTurn) {
    const ssize_t size = read(process.launched.output.get(), buffer, sizeof(buffer));
    if (size > 0) {
      process.launched.log.Append(absl::string_view(buffer, static_cast<size_t>(size)));
      taken += static_cast<size_t>(size);
      continue;
    }
    if (size < 0 && errno == EINTR) continue;
    at_end = size == 0 || errno != EAGAIN;
    break;
  }
  if (at_end) {
    // Nobody writes any more; watching it further would wake the loop for ever.
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, process.launched.output.get(), nullptr);
    process.launched.output.Reset();
  }
  if (taken > 0) options_.on_log_grown(process.key, process.launched.log.path(), process.launched.log.size_bytes());
}

void TaskRunner::ReapEnded() {
  // As a child subreaper the daemon is also the parent of what tasks left behind; those are reaped without a word.
  while (true) {
    int wait_status = 0;
    const pid_t pid = waitpid(-1, &wait_status, WNOHANG);
    if (pid <= 0) return;
    const auto found = std::find_if(processes_.begin(), processes_.end(),
                                    [&](const auto& entry) { return entry.second->launched.process.pid == pid; });
    if (found == processes_.end()) continue;
    const std::unique_ptr<Process> process = std::move(found->second);
    processes_.erase(found);
    End(*process, wait_status);
  }
}

void TaskRunner::End(Process& process, int wait_status) {
  const pid_t pid = process.launched.process.pid;
  KillProcessGroup(pid, SIGKILL);
  const int strays = KillMarkedProcesses({absl::StrCat(kTaskOfVariable, "=", options_.launch.state_folder),
                                          absl::StrCat(kTaskVariable, "=", NameOf(process.key))},
                                         kSweepTimeout);
  while (process.launched.output.valid()) {
    const int64_t before = process.launched.log.size_bytes();
    ReadOutput(process);
    if (process.launched.log.size_bytes() == before) break;
  }
  process.launched.log.Finish();
  options_.on_log_grown(process.key, process.launched.log.path(), process.launched.log.size_bytes());

  v1::TaskExit exit;
  *exit.mutable_ref() = process.assignment.ref();
  if (WIFSIGNALED(wait_status)) {
    exit.set_signal(WTERMSIG(wait_status));
  } else {
    exit.set_exit_code(WEXITSTATUS(wait_status));
  }
  exit.set_killed_by_worker(process.stopping);
  exit.set_message(ValidUtf8(process.killed_because.empty() ? process.launched.log.LastLine() : process.killed_because,
                             kMaxMessageBytes));
  spdlog::info("task_ended task_id={} epoch={} pid={} exit_code={} signal={} killed_by_worker={} strays={}",
               process.key.task_id, process.key.epoch, pid, exit.exit_code(), exit.signal(), exit.killed_by_worker(),
               strays);
  ReportEnd(exit);
}

void TaskRunner::ReportEnd(const v1::TaskExit& exit) {
  ended_.insert(KeyOf(exit.ref()));
  unacknowledged_.insert(KeyOf(exit.ref()));
  options_.on_exit(exit);
}

void TaskRunner::PublishRunning() {
  std::vector<v1::RunningTask> running;
  for (const auto& [key, process] : processes_) {
    v1::RunningTask task;
    *task.mutable_ref() = RefOf(key);
    task.set_pid(process->launched.process.pid);
    running.push_back(std::move(task));
  }
  for (const TaskKey& key : unacknowledged_) {
    v1::RunningTask task;
    *task.mutable_ref() = RefOf(key);
    running.push_back(std::move(task));
  }
  std::lock_guard<std::mutex> lock(mu_);
  running_ = std::move(running);
  starting_.clear();
  process_count_ = processes_.size();
  applied_ = taken_;
}

int TaskRunner::PollMilliseconds() const {
  absl::Duration wait = kIdlePoll;
  const absl::Time now = absl::Now();
  for (const auto& [key, process] : processes_) {
    if (!process->launched.process.pidfd.valid()) wait = std::min(wait, kPollWithoutPidfd);
    if (process->assignment.memory_limit_bytes() > 0) wait = std::min(wait, kMemoryCheckInterval);
    if (process->kill_at != absl::InfinitePast()) wait = std::min(wait, process->kill_at - now);
  }
  return static_cast<int>(absl::ToInt64Milliseconds(std::max(wait, absl::ZeroDuration()))) + 1;
}

}  // namespace retort::worker
