#include "common/process.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/status.h"

extern char** environ;

namespace retort {
namespace {

constexpr size_t kChildStackBytes = 64 << 10;
constexpr int kLargestFdTried = 65'536;

// What the child needs, laid out before it exists. It shares the caller's memory until exec, so it allocates nothing
// and reports through `error_number` and `failed_step`.
struct ChildPlan {
  const char* program;
  char* const* argv;
  char* const* envp;
  const char* working_folder;  // nullptr: stay
  int fds[3];                  // all valid, all above 2
  bool new_session;
  bool die_with_thread;
  pid_t parent;
  sigset_t signal_mask;
  volatile int error_number = 0;
  const char* volatile failed_step = nullptr;
};

int FailChild(ChildPlan& plan, const char* step) {
  plan.failed_step = step;
  plan.error_number = errno;
  _exit(127);
}

void CloseOnExecAbove(unsigned int first) {
#ifdef SYS_close_range
  constexpr unsigned int kCloseRangeCloexec = 1U << 2;
  if (syscall(SYS_close_range, first, ~0U, kCloseRangeCloexec) == 0) return;
#endif
  for (int fd = static_cast<int>(first); fd < kLargestFdTried; ++fd) fcntl(fd, F_SETFD, FD_CLOEXEC);
}

int RunChild(void* argument) {
  ChildPlan& plan = *static_cast<ChildPlan*>(argument);
  for (int signal = 1; signal < NSIG; ++signal) {
    struct sigaction action = {};
    action.sa_handler = SIG_DFL;
    sigaction(signal, &action, nullptr);
  }
  if (plan.new_session && setsid() < 0) FailChild(plan, "setsid");
  if (plan.die_with_thread) {
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) FailChild(plan, "prctl(PR_SET_PDEATHSIG)");
    // The caller may have died before the line above took effect.
    if (getppid() != plan.parent) _exit(127);
  }
  for (int target = 0; target < 3; ++target) {
    if (dup2(plan.fds[target], target) < 0) FailChild(plan, "dup2");
  }
  CloseOnExecAbove(3);
  if (plan.working_folder != nullptr && chdir(plan.working_folder) != 0) FailChild(plan, "enter the working folder of");
  sigprocmask(SIG_SETMASK, &plan.signal_mask, nullptr);
  execve(plan.program, plan.argv, plan.envp);
  FailChild(plan, "start");
  return 127;
}

std::vector<char*> Pointers(const std::vector<std::string>& words) {
  std::vector<char*> pointers;
  pointers.reserve(words.size() + 1);
  for (const std::string& word : words) pointers.push_back(const_cast<char*>(word.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// A copy of `fd` (or /dev/null) numbered above 2, so that dup2 onto 0, 1 and 2 overwrites no source.
absl::StatusOr<UniqueFd> HighFd(int fd) {
  if (fd >= 0) {
    UniqueFd copy(fcntl(fd, F_DUPFD_CLOEXEC, 3));
    if (!copy.valid()) return ErrnoStatus("duplicate a descriptor", errno);
    return copy;
  }
  UniqueFd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null.valid()) return ErrnoStatus("open /dev/null", errno);
  return HighFd(null.get());
}

}  // namespace

absl::StatusOr<ChildProcess> SpawnProcess(const SpawnOptions& options) {
  if (options.argv.empty()) return absl::InvalidArgumentError("start a program: no program is named");
  UniqueFd fds[3];
  const int wanted[3] = {options.stdin_fd, options.stdout_fd, options.stderr_fd};
  for (int i = 0; i < 3; ++i) {
    ASSIGN_OR_RETURN(fds[i], HighFd(wanted[i]));
  }
  const std::vector<char*> argv = Pointers(options.argv);
  const std::vector<char*> envp = Pointers(options.environment);
  ChildPlan plan = {};
  plan.program = argv[0];
  plan.argv = argv.data();
  plan.envp = envp.data();
  plan.working_folder = options.working_folder.empty() ? nullptr : options.working_folder.c_str();
  for (int i = 0; i < 3; ++i) plan.fds[i] = fds[i].get();
  plan.new_session = options.new_session;
  plan.die_with_thread = options.die_with_thread;
  plan.parent = getpid();

  void* stack = mmap(nullptr, kChildStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
  if (stack == MAP_FAILED) return ErrnoStatus("map a stack for a child process", errno);
  // No signal handler of ours may run in the child while it shares our memory.
  sigset_t all;
  sigfillset(&all);
  sigset_t before;
  pthread_sigmask(SIG_SETMASK, &all, &before);
  sigemptyset(&plan.signal_mask);
  int pidfd = -1;
  // CLONE_VFORK: this thread waits until the child has started the program or has ended.
  const pid_t pid = clone(RunChild, static_cast<char*>(stack) + kChildStackBytes,
                          CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD, &plan, &pidfd);
  const int clone_error = errno;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  munmap(stack, kChildStackBytes);
  if (pid < 0) return ErrnoStatus(absl::StrCat("start ", options.argv[0]), clone_error);
  ChildProcess child{.pid = pid, .pidfd = UniqueFd(pidfd)};
  if (plan.error_number != 0) {
    while (waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    return ErrnoStatus(absl::StrCat(plan.failed_step, " ", options.argv[0]), plan.error_number);
  }
  return child;
}

std::string ProcessExit::ToString() const {
  if (signal != 0) return absl::StrCat("signal ", signal, " (", strsignal(signal), ")");
  return absl::StrCat("exit code ", exit_code);
}

absl::StatusOr<ProcessExit> WaitProcess(pid_t pid, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  while (true) {
    int status = 0;
    const pid_t done = waitpid(pid, &status, WNOHANG);
    if (done == pid) {
      if (WIFSIGNALED(status)) return ProcessExit{.signal = WTERMSIG(status)};
      return ProcessExit{.exit_code = WEXITSTATUS(status)};
    }
    if (done < 0 && errno != EINTR)
      return ErrnoStatus(absl::StrCat("wait for process ", pid), errno == ECHILD ? ENOENT : errno);
    if (absl::Now() >= deadline) return absl::DeadlineExceededError(absl::StrCat("process ", pid, " has not ended"));
    absl::SleepFor(absl::Milliseconds(5));
  }
}

void KillProcessGroup(pid_t pid, int signal) {
  if (pid > 1) kill(-pid, signal);
}

absl::StatusOr<ProcessIdentity> IdentifyProcess(pid_t pid) {
  // /proc/<pid>/stat is "pid (name) state ppid ...": the name may hold anything, so fields count from its last ")". Its
  // size is unknown beforehand, hence no ReadFile.
  const std::string path = absl::StrCat("/proc/", pid, "/stat");
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("find process ", pid), errno);
  char buffer[4096];
  const ssize_t size = read(fd.get(), buffer, sizeof(buffer));
  // The process may end between open and read.
  if (size <= 0) return absl::NotFoundError(absl::StrCat("process ", pid, " has ended"));
  const std::string text(buffer, static_cast<size_t>(size));
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos || name_end + 2 >= text.size())
    return absl::InternalError(absl::StrCat(path, ": not understood"));
  const std::vector<std::string> fields = absl::StrSplit(text.substr(name_end + 2), ' ');
  ProcessIdentity identity{.pid = pid};
  constexpr size_t kStartTimeField = 19;  // field 22 of the line
  if (fields.size() <= kStartTimeField || !absl::SimpleAtoi(fields[kStartTimeField], &identity.start_ticks)) {
    return absl::InternalError(absl::StrCat(path, ": not understood"));
  }
  if (fields[0] == "Z" || fields[0] == "X") return absl::NotFoundError(absl::StrCat("process ", pid, " has ended"));
  return identity;
}

bool IsAlive(const ProcessIdentity& process) {
  const absl::StatusOr<ProcessIdentity> now = IdentifyProcess(process.pid);
  return now.ok() && now->start_ticks == process.start_ticks;
}

std::vector<std::string> EnvironmentWith(const std::vector<std::string>& overrides) {
  const auto name_of = [](const std::string& word) { return word.substr(0, word.find('=')); };
  std::vector<std::string> environment;
  for (char** word = environ; word != nullptr && *word != nullptr; ++word) {
    bool replaced = false;
    for (const std::string& other : overrides) replaced = replaced || name_of(other) == name_of(*word);
    if (!replaced) environment.emplace_back(*word);
  }
  environment.insert(environment.end(), overrides.begin(), overrides.end());
  return environment;
}

absl::StatusOr<std::string> ProgramFolder() {
  char buffer[4096];
  const ssize_t size = readlink("/proc/self/exe", buffer, sizeof(buffer));
  if (size <= 0 || static_cast<size_t>(size) == sizeof(buffer)) return ErrnoStatus("read /proc/self/exe", errno);
  const std::string path(buffer, static_cast<size_t>(size));
  return path.substr(0, path.rfind('/'));
}

}  // namespace retort
