#include "worker/task_launch.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/file.h"
#include "common/rpc/task_client.h"
#include "common/status.h"
#include "worker/leftovers.h"
#include "worker/reconcile.h"

namespace retort::worker {
namespace {

constexpr size_t kMaxTaskIdBytes = 200;
constexpr int kPipeBytes = 1 << 20;

bool IsRole(const std::string& role) { return role == "teacher" || role == "student" || role == "curate"; }

// A single path part without surprises.
bool IsTaskId(const std::string& id) {
  return !id.empty() && id.size() <= kMaxTaskIdBytes && id[0] != '.' && std::all_of(id.begin(), id.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.';
  });
}

}  // namespace

SpawnOptions TaskSpawnOptions(const LaunchOptions& options, const v1::Assignment& assignment,
                              const std::string& work_folder) {
  const int threads = std::max(assignment.threads(), 1);
  SpawnOptions spawn;
  spawn.argv = {absl::StrCat(options.bin_folder, "/retort-", assignment.role()),
                "task",
                "--coordinator",
                options.channel.address,
                "--task-id",
                assignment.ref().task_id(),
                "--epoch",
                absl::StrCat(assignment.ref().epoch()),
                "--work-dir",
                work_folder,
                "--threads",
                absl::StrCat(threads),
                "--cache-dir",
                options.cache_folder};
  const auto add_file = [&](const char* flag, const std::string& path) {
    if (!path.empty()) spawn.argv.insert(spawn.argv.end(), {flag, path});
  };
  add_file("--token-file", options.channel.token_file);
  add_file("--tls-ca", options.channel.tls_ca);
  add_file("--tls-cert", options.channel.tls_cert);
  add_file("--tls-key", options.channel.tls_key);
  spawn.environment = EnvironmentWith({
      absl::StrCat("CUDA_VISIBLE_DEVICES=", absl::StrJoin(assignment.gpu_indices(), ",")),
      // Makes CUDA number the devices as the driver does, and so as they are registered.
      "CUDA_DEVICE_ORDER=PCI_BUS_ID",
      absl::StrCat("OMP_NUM_THREADS=", threads),
      absl::StrCat("MKL_NUM_THREADS=", threads),
      absl::StrCat(kParentPidVariable, "=", getpid()),
      absl::StrCat(kTaskOfVariable, "=", options.state_folder),
      absl::StrCat(kTaskVariable, "=", NameOf(KeyOf(assignment.ref()))),
  });
  spawn.working_folder = work_folder;
  spawn.new_session = true;
  spawn.die_with_thread = true;
  return spawn;
}

absl::StatusOr<LaunchedTask> LaunchTask(const LaunchOptions& options, const v1::Assignment& assignment) {
  if (!IsRole(assignment.role())) {
    return absl::InvalidArgumentError(
        absl::StrCat("role \"", assignment.role(), "\": this worker has no such program"));
  }
  if (!IsTaskId(assignment.ref().task_id())) {
    return absl::InvalidArgumentError(
        absl::StrCat("task id \"", assignment.ref().task_id(), "\" cannot name a folder"));
  }
  ASSIGN_OR_RETURN(const std::string work_folder, JoinBelow(options.tasks_folder, NameOf(KeyOf(assignment.ref()))));
  RETURN_IF_ERROR(MakeFolders(work_folder, 0700));
  ASSIGN_OR_RETURN(TaskLog log, TaskLog::Open(work_folder + "/task.log"));
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) return ErrnoStatus("make a pipe for a task's output", errno);
  UniqueFd reader(fds[0]);
  const UniqueFd writer(fds[1]);
  // Non-blocking for this side alone; a large pipe lets a burst pass while this side is busy.
  fcntl(reader.get(), F_SETFL, O_NONBLOCK);
  fcntl(reader.get(), F_SETPIPE_SZ, kPipeBytes);
  SpawnOptions spawn = TaskSpawnOptions(options, assignment, work_folder);
  spawn.stdout_fd = writer.get();
  spawn.stderr_fd = writer.get();
  ASSIGN_OR_RETURN(ChildProcess process, SpawnProcess(spawn));
  return LaunchedTask{.process = std::move(process), .output = std::move(reader), .log = std::move(log)};
}

}  // namespace retort::worker
