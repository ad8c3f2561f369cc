#include "cli/local/supervisor.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cli/local/daemon_process.h"
#include "cli/local/local_port.h"
#include "cli/local/local_state.h"
#include "common/log.h"
#include "common/status.h"

namespace retort::cli {
namespace {

constexpr absl::Duration kStopGrace = absl::Seconds(10);
constexpr absl::Duration kIdleWait = absl::Seconds(10);
// While the coordinator has yet to say where it listens.
constexpr absl::Duration kAddressPoll = absl::Milliseconds(10);
// A daemon that ends itself this often in a row, before it ever lived for a while, will not come up.
constexpr int kHopelessDeaths = 3;

class Supervisor {
 public:
  explicit Supervisor(const SupervisorOptions& options)
      : options_(options),
        coordinator_("coordinator", options.state_dir + "/coordinator.log"),
        worker_("worker", options.state_dir + "/worker.log") {}

  absl::Status Run();

 private:
  void ChoosePort();
  void StartDaemons(absl::Time now);
  // The port that the coordinator took, once it has written it; 0 before.
  int ReadPort() const;
  void ReapEnded(absl::Time now);
  absl::Status CheckHope() const;
  void Publish();
  absl::Duration UntilNextStart(absl::Time now) const;

  const SupervisorOptions options_;
  const std::string address_file_ = options_.state_dir + "/coordinator.address";
  int port_ = 0;            // to listen on; 0: any
  bool listening_ = false;  // the coordinator has been seen to listen
  DaemonProcess coordinator_;
  DaemonProcess worker_;
  LocalState published_;
};

void Supervisor::ChoosePort() {
  port_ = options_.port;
  if (port_ != 0) return;
  const absl::StatusOr<LocalState> earlier = ReadLocalState(options_.state_dir);
  if (earlier.ok() && earlier->coordinator_port > 0 && CheckPortIsFree(earlier->coordinator_port).ok()) {
    port_ = earlier->coordinator_port;
  }
}

int Supervisor::ReadPort() const {
  const absl::StatusOr<std::string> text = ReadFile(address_file_, 256);
  int port = 0;
  if (!text.ok() || !absl::SimpleAtoi(text->substr(text->rfind(':') + 1), &port)) return 0;
  return port;
}

void Supervisor::StartDaemons(absl::Time now) {
  if (coordinator_.pid() == 0 && now >= coordinator_.start_at()) {
    if (!listening_) unlink(address_file_.c_str());
    coordinator_.Start({options_.bin_dir + "/retort-coordinator", "--state-dir", options_.state_dir + "/coordinator",
                        "--listen", absl::StrCat("127.0.0.1:", port_), "--token-file", options_.state_dir + "/token",
                        "--address-file", address_file_},
                       now);
  }
  if (!listening_) {
    const int port = ReadPort();
    if (port == 0) return;
    port_ = port;
    listening_ = true;
  }
  if (worker_.pid() == 0 && now >= worker_.start_at()) {
    std::vector<std::string> argv = {options_.bin_dir + "/retort-worker",
                                     "--state-dir",
                                     options_.state_dir + "/worker",
                                     "--coordinator",
                                     absl::StrCat("127.0.0.1:", port_),
                                     "--token-file",
                                     options_.state_dir + "/token",
                                     "--bin-dir",
                                     options_.bin_dir};
    if (options_.cpu_slots > 0) argv.insert(argv.end(), {"--cpu-slots", absl::StrCat(options_.cpu_slots)});
    worker_.Start(argv, now);
  }
}

void Supervisor::ReapEnded(absl::Time now) {
  // What the daemons leave behind when they are killed becomes a child of this process.
  while (true) {
    int status = 0;
    const pid_t pid = waitpid(-1, &status, WNOHANG);
    if (pid <= 0) return;
    const ProcessExit exit =
        WIFSIGNALED(status) ? ProcessExit{.signal = WTERMSIG(status)} : ProcessExit{.exit_code = WEXITSTATUS(status)};
    for (DaemonProcess* daemon : {&coordinator_, &worker_}) {
      if (daemon->pid() == pid) daemon->Ended(exit, now);
    }
  }
}

absl::Status Supervisor::CheckHope() const {
  for (const DaemonProcess* daemon : {&coordinator_, &worker_}) {
    if (daemon->pid() != 0 || daemon->proven() || daemon->quick_deaths() < kHopelessDeaths ||
        !daemon->last_exit_was_its_own())
      continue;
    return absl::FailedPreconditionError(absl::StrCat("the ", daemon->name(), " does not start; ", daemon->log_path(),
                                                      " ends with:\n", LastLines(daemon->log_path(), 5)));
  }
  return absl::OkStatus();
}

void Supervisor::Publish() {
  const LocalState state{.supervisor_pid = getpid(),
                         .coordinator_pid = coordinator_.pid(),
                         .coordinator_port = listening_ ? port_ : 0,
                         .worker_pid = worker_.pid()};
  const bool changed =
      state.supervisor_pid != published_.supervisor_pid || state.coordinator_pid != published_.coordinator_pid ||
      state.coordinator_port != published_.coordinator_port || state.worker_pid != published_.worker_pid;
  if (!changed || !listening_) return;
  const absl::Status status = WriteLocalState(options_.state_dir, state);
  if (!status.ok()) spdlog::error("local_state_not_written error=\"{}\"", status.ToString());
  if (status.ok()) published_ = state;
}

absl::Duration Supervisor::UntilNextStart(absl::Time now) const {
  absl::Duration wait = listening_ ? kIdleWait : kAddressPoll;
  for (const DaemonProcess* daemon : {&coordinator_, &worker_}) {
    if (daemon->pid() == 0) wait = std::min(wait, std::max(daemon->start_at() - now, absl::Milliseconds(1)));
  }
  return wait;
}

absl::Status Supervisor::Run() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGCHLD, SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  prctl(PR_SET_CHILD_SUBREAPER, 1);

  ASSIGN_OR_RETURN(const UniqueFd lock, TakeSupervisorLock(options_.state_dir));
  ChoosePort();
  spdlog::info("supervisor_started pid={} state_dir={} port={}", getpid(), options_.state_dir, port_);
  while (true) {
    StartDaemons(absl::Now());
    Publish();
    if (const absl::Status hope = CheckHope(); !hope.ok()) {
      worker_.Stop(kStopGrace);
      coordinator_.Stop(kStopGrace);
      return hope;
    }
    const timespec wait = absl::ToTimespec(UntilNextStart(absl::Now()));
    const int signal = sigtimedwait(&signals, nullptr, &wait);
    if (signal == SIGTERM || signal == SIGINT || signal == SIGHUP) break;
    ReapEnded(absl::Now());
  }
  spdlog::info("supervisor_stopping");
  worker_.Stop(kStopGrace);
  coordinator_.Stop(kStopGrace);
  unlink(LocalStatePath(options_.state_dir).c_str());
  spdlog::info("supervisor_stopped");
  return absl::OkStatus();
}

}  // namespace

int RunSupervisor(const SupervisorOptions& options) {
  InitLogging("supervisor");
  const absl::Status status = Supervisor(options).Run();
  if (status.ok()) return 0;
  // Two that were started at the same moment: the other one does the work.
  if (absl::IsAlreadyExists(status)) return 0;
  spdlog::error("supervisor_failed error=\"{}\"", status.ToString());
  return 1;
}

}  // namespace retort::cli
