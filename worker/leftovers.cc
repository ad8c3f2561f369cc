#include "worker/leftovers.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/file.h"

namespace retort::worker {
namespace {

constexpr int64_t kMaxEnvironmentBytes = 4 << 20;
constexpr absl::Duration kPause = absl::Milliseconds(10);

std::vector<pid_t> ListProcesses() {
  std::vector<pid_t> pids;
  DIR* folder = opendir("/proc");
  if (folder == nullptr) return pids;
  while (const dirent* entry = readdir(folder)) {
    pid_t pid = 0;
    if (absl::SimpleAtoi(entry->d_name, &pid)) pids.push_back(pid);
  }
  closedir(folder);
  return pids;
}

// Empty for a process of another user, a kernel thread, and one that has ended.
std::string ReadEnvironment(pid_t pid) {
  const UniqueFd fd(open(absl::StrCat("/proc/", pid, "/environ").c_str(), O_RDONLY | O_CLOEXEC));
  std::string environment;
  char buffer[16384];
  while (fd.valid() && static_cast<int64_t>(environment.size()) < kMaxEnvironmentBytes) {
    const ssize_t size = read(fd.get(), buffer, sizeof(buffer));
    if (size <= 0) break;
    environment.append(buffer, static_cast<size_t>(size));
  }
  return environment;
}

bool HoldsAll(const std::string& environment, const std::vector<std::string>& words) {
  const std::vector<absl::string_view> held = absl::StrSplit(environment, '\0');
  return std::all_of(words.begin(), words.end(), [&](const std::string& word) {
    return std::find(held.begin(), held.end(), absl::string_view(word)) != held.end();
  });
}

// The descriptor pins the process, so that the one that was looked at is the one that is killed.
bool KillIfMarked(pid_t pid, const std::vector<std::string>& words) {
  const UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!HoldsAll(ReadEnvironment(pid), words)) return false;
  if (pidfd.valid()) {
    return syscall(SYS_pidfd_send_signal, pidfd.get(), SIGKILL, nullptr, 0) == 0;
  }
  return kill(pid, SIGKILL) == 0;
}

}  // namespace

int KillMarkedProcesses(const std::vector<std::string>& words, absl::Duration timeout) {
  std::set<pid_t> killed;
  const absl::Time deadline = absl::Now() + timeout;
  while (true) {
    bool found = false;
    for (const pid_t pid : ListProcesses()) {
      if (pid == getpid() || !KillIfMarked(pid, words)) continue;
      found = true;
      killed.insert(pid);
    }
    if (!found || absl::Now() >= deadline) return static_cast<int>(killed.size());
    absl::SleepFor(kPause);
  }
}

}  // namespace retort::worker
