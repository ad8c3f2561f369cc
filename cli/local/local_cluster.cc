#include "cli/local/local_cluster.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/local/local_port.h"
#include "common/process.h"
#include "common/rpc/channel.h"
#include "common/status.h"
#include "retort/v1/job_service.grpc.pb.h"

namespace retort::cli {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(20);
constexpr absl::Duration kProbeTimeout = absl::Seconds(1);
constexpr absl::Duration kDownTimeout = absl::Seconds(30);
constexpr int kLogLinesShown = 5;

absl::Status CheckPrograms(const std::string& folder) {
  for (const char* program : {"retort-coordinator", "retort-worker"}) {
    const std::string path = absl::StrCat(folder, "/", program);
    if (access(path.c_str(), X_OK) != 0) return ErrnoStatus(absl::StrCat("run ", path), errno);
  }
  return absl::OkStatus();
}

absl::StatusOr<ChildProcess> StartSupervisor(const LocalUpOptions& options, const std::string& bin_dir) {
  const std::string log_path = SupervisorLogPath(options.state_dir);
  const UniqueFd log(open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!log.valid()) return ErrnoStatus(absl::StrCat("open ", log_path), errno);
  SpawnOptions spawn;
  spawn.argv = {bin_dir + "/distctl",
                "local",
                "supervise",
                "--state-dir",
                options.state_dir,
                "--port",
                absl::StrCat(options.port),
                "--cpu-slots",
                absl::StrCat(options.cpu_slots)};
  spawn.environment = EnvironmentWith({});
  spawn.working_folder = options.state_dir;
  spawn.stdout_fd = log.get();
  spawn.stderr_fd = log.get();
  return SpawnProcess(spawn);
}

void SetTimeout(grpc::ClientContext& context, absl::Duration timeout) {
  context.set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
}

// The cluster as it answers; kUnavailable with the reason while it does not.
absl::StatusOr<LocalCluster> Probe(const std::string& state_dir, pid_t supervisor) {
  ASSIGN_OR_RETURN(const LocalState state, ReadLocalState(state_dir));
  // The file of an earlier cluster names another supervisor.
  if (state.supervisor_pid != supervisor)
    return absl::UnavailableError("the supervisor has not started the coordinator");
  if (state.coordinator_pid == 0) return absl::UnavailableError("the coordinator is being started again");
  LocalCluster cluster{.processes = state, .address = absl::StrCat("127.0.0.1:", state.coordinator_port)};
  ASSIGN_OR_RETURN(const auto channel, OpenChannel({.address = cluster.address, .token_file = state_dir + "/token"}));
  const auto stub = v1::JobService::NewStub(channel);
  v1::ListWorkersResponse workers;
  grpc::ClientContext context;
  SetTimeout(context, kProbeTimeout);
  context.set_wait_for_ready(true);
  if (const absl::Status status = FromGrpc(stub->ListWorkers(&context, v1::ListWorkersRequest(), &workers));
      !status.ok()) {
    return absl::UnavailableError(absl::StrCat("the coordinator does not answer: ", status.ToString()));
  }
  for (const v1::WorkerStatus& worker : workers.workers()) {
    if (worker.state() != v1::WORKER_STATE_READY && worker.state() != v1::WORKER_STATE_DRAINING) continue;
    cluster.worker_id = worker.worker_id();
    cluster.cpu_slots = worker.resources().cpu_slots();
    cluster.gpus = worker.resources().gpus_size();
    return cluster;
  }
  return absl::UnavailableError("no worker has registered");
}

std::string LogEnds(const std::string& state_dir) {
  std::string text;
  for (const char* name : {"supervisor.log", "coordinator.log", "worker.log"}) {
    const std::string path = absl::StrCat(state_dir, "/", name);
    const std::string lines = LastLines(path, kLogLinesShown);
    if (!lines.empty()) absl::StrAppend(&text, "\n", path, " ends with:\n", lines);
  }
  return text;
}

}  // namespace

absl::StatusOr<LocalCluster> LocalUp(const LocalUpOptions& options) {
  RETURN_IF_ERROR(MakeFolders(options.state_dir, 0700));
  ASSIGN_OR_RETURN(const std::string bin_dir, ProgramFolder());
  const absl::Time deadline = absl::Now() + options.timeout;
  std::optional<ChildProcess> started;
  absl::Status why = absl::UnavailableError("nothing was tried");
  do {
    const absl::StatusOr<pid_t> supervisor = LivingSupervisor(options.state_dir);
    why = supervisor.status();
    if (supervisor.ok() && *supervisor == 0) {
      if (started.has_value()) {
        // The one that was just started is not there yet, or has given up.
        const absl::StatusOr<ProcessExit> exit = WaitProcess(started->pid, absl::ZeroDuration());
        if (exit.ok()) {
          return absl::FailedPreconditionError(absl::StrCat(
              "the local cluster does not start: ", LastLines(SupervisorLogPath(options.state_dir), kLogLinesShown)));
        }
      } else {
        RETURN_IF_ERROR(CheckPrograms(bin_dir));
        if (options.port != 0) RETURN_IF_ERROR(CheckPortIsFree(options.port));
        ASSIGN_OR_RETURN(started, StartSupervisor(options, bin_dir));
      }
    } else if (supervisor.ok()) {
      absl::StatusOr<LocalCluster> cluster = Probe(options.state_dir, *supervisor);
      why = cluster.status();
      if (cluster.ok()) {
        if (options.port != 0 && options.port != cluster->processes.coordinator_port) {
          return absl::FailedPreconditionError(absl::StrCat("the local cluster in ", options.state_dir,
                                                            " runs on port ", cluster->processes.coordinator_port,
                                                            "; `distctl local down` stops it"));
        }
        cluster->started = started.has_value();
        return cluster;
      }
    }
    absl::SleepFor(kPoll);
  } while (absl::Now() < deadline);
  return absl::DeadlineExceededError(absl::StrCat("the local cluster in ", options.state_dir, " was not ready within ",
                                                  absl::FormatDuration(options.timeout), " (",
                                                  std::string(why.message()), ")", LogEnds(options.state_dir)));
}

absl::StatusOr<bool> LocalDown(const std::string& state_dir) {
  if (access(state_dir.c_str(), F_OK) != 0) return false;
  ASSIGN_OR_RETURN(const pid_t supervisor, LivingSupervisor(state_dir));
  if (supervisor == 0) {
    unlink(LocalStatePath(state_dir).c_str());  // of a cluster that was killed
    return false;
  }
  kill(supervisor, SIGTERM);
  const absl::Time deadline = absl::Now() + kDownTimeout;
  while (absl::Now() < deadline) {
    const absl::StatusOr<pid_t> now = LivingSupervisor(state_dir);
    if (now.ok() && *now != supervisor) return true;
    absl::SleepFor(kPoll);
  }
  // The kernel takes its daemons with it.
  kill(supervisor, SIGKILL);
  return absl::DeadlineExceededError(absl::StrCat("the supervisor (pid ", supervisor, ") did not stop within ",
                                                  absl::FormatDuration(kDownTimeout), " and was killed"));
}

}  // namespace retort::cli
