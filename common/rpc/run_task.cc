#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/fault.h"
#include "common/log.h"
#include "common/rpc/task_client.h"
#include "common/status.h"

namespace retort {
namespace {

// Ties this process to its daemon: the kernel kills it when the daemon's spawning thread ends. A daemon that died
// before the call was made is noticed by its id.
void DieWithParent() {
  const char* text = std::getenv(kParentPidVariable);
  int parent_pid = 0;
  if (text == nullptr || !absl::SimpleAtoi(text, &parent_pid)) return;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent_pid) {
    spdlog::warn("parent_gone parent_pid={}", parent_pid);
    _exit(kTaskExitFenced);
  }
}

absl::StatusOr<v1::TaskResult> RunWork(TaskContext& context,
                                       const std::function<absl::StatusOr<v1::TaskResult>(TaskContext&)>& work) {
  try {
    return work(context);
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError("out of memory; use a smaller batch or a smaller model");
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("unexpected: ", error.what()));
  }
}

}  // namespace

int RunTask(int argc, char** argv, absl::string_view role,
            const std::function<absl::StatusOr<v1::TaskResult>(TaskContext&)>& work) {
  InitLogging(role);
  DieWithParent();
  if (argc < 2 || absl::string_view(argv[1]) != "task") {
    std::fprintf(stderr,
                 "usage: %s task --coordinator HOST:PORT --task-id ID --epoch E --work-dir DIR --cache-dir DIR ...\n",
                 argc > 0 ? argv[0] : "retort");
    return kTaskExitUsage;
  }
  absl::StatusOr<TaskFlags> flags = ParseTaskFlags(argc - 2, argv + 2);
  if (!flags.ok()) {
    const std::string message(flags.status().message());
    std::fprintf(stderr, "%s: %s\n", argv[0], message.c_str());
    return kTaskExitUsage;
  }
  absl::StatusOr<std::unique_ptr<TaskContext>> opened = TaskContext::Open(*std::move(flags));
  if (!opened.ok()) {
    spdlog::error("task_unopened error=\"{}\"", opened.status().ToString());
    return kTaskExitUnheard;
  }
  TaskContext& context = **opened;
  spdlog::info("task_started task_id={} epoch={} threads={}", context.ref().task_id(), context.ref().epoch(),
               context.flags().threads);
  MAYBE_FAULT("task.started");

  const absl::StatusOr<v1::TaskResult> result = RunWork(context, work);
  absl::Status failure = result.status();
  if (result.ok()) {
    MAYBE_FAULT("task.before_complete");
    const absl::Status completed = context.Complete(*result);
    if (completed.ok()) {
      spdlog::info("task_completed task_id={} epoch={}", context.ref().task_id(), context.ref().epoch());
      return kTaskExitDone;
    }
    spdlog::error("task_completion_undelivered task_id={} error=\"{}\"", context.ref().task_id(), completed.ToString());
    if (absl::IsUnavailable(completed) || absl::IsDeadlineExceeded(completed)) return kTaskExitUnheard;
    failure = WithContext(completed, "deliver the result");
  }
  spdlog::error("task_failed task_id={} cause={} error=\"{}\"", context.ref().task_id(),
                v1::FailureCause_Name(FailureCauseOf(failure)), failure.ToString());
  const absl::Status failed = context.Fail(failure);
  if (failed.ok()) return kTaskExitFailed;
  spdlog::error("task_failure_undelivered task_id={} error=\"{}\"", context.ref().task_id(), failed.ToString());
  return kTaskExitUnheard;
}

}  // namespace retort
