#include "cli/local/local_state.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/json.h"
#include "common/status.h"

namespace retort::cli {
namespace {

constexpr off_t kMaxTailBytes = 8192;

std::string LockPath(const std::string& state_dir) { return state_dir + "/supervisor.lock"; }

absl::StatusOr<UniqueFd> OpenLock(const std::string& state_dir) {
  UniqueFd fd(open(LockPath(state_dir).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("open ", LockPath(state_dir)), errno);
  return fd;
}

int IntegerAt(const nlohmann::json& document, const char* pointer) {
  const nlohmann::json value = document.value(nlohmann::json::json_pointer(pointer), nlohmann::json());
  return value.is_number_integer() && value.get<int64_t>() >= 0 && value.get<int64_t>() <= (1 << 30) ? value.get<int>()
                                                                                                     : -1;
}

}  // namespace

std::string LocalStatePath(const std::string& state_dir) { return state_dir + "/local.json"; }
std::string SupervisorLogPath(const std::string& state_dir) { return state_dir + "/supervisor.log"; }

absl::StatusOr<LocalState> ReadLocalState(const std::string& state_dir) {
  const std::string path = LocalStatePath(state_dir);
  ASSIGN_OR_RETURN(const nlohmann::json document, ReadJsonFile(path));
  if (!document.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": is no JSON object"));
  LocalState state{.supervisor_pid = IntegerAt(document, "/supervisor/pid"),
                   .coordinator_pid = IntegerAt(document, "/coordinator/pid"),
                   .coordinator_port = IntegerAt(document, "/coordinator/port"),
                   .worker_pid = IntegerAt(document, "/worker/pid")};
  if (state.supervisor_pid < 0 || state.coordinator_pid < 0 || state.worker_pid < 0 || state.coordinator_port < 0 ||
      state.coordinator_port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": is damaged; `distctl local up` writes it again"));
  }
  return state;
}

absl::Status WriteLocalState(const std::string& state_dir, const LocalState& state) {
  const nlohmann::json document = {{"supervisor", {{"pid", state.supervisor_pid}}},
                                   {"coordinator", {{"pid", state.coordinator_pid}, {"port", state.coordinator_port}}},
                                   {"worker", {{"pid", state.worker_pid}, {"port", 0}}}};
  return WriteFileAtomically(LocalStatePath(state_dir), document.dump() + "\n", 0600);
}

absl::StatusOr<UniqueFd> TakeSupervisorLock(const std::string& state_dir) {
  ASSIGN_OR_RETURN(UniqueFd fd, OpenLock(state_dir));
  if (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(absl::StrCat("lock ", LockPath(state_dir)), errno);
    return absl::AlreadyExistsError(absl::StrCat("another supervisor runs the local cluster in ", state_dir));
  }
  const std::string pid = absl::StrCat(getpid(), "\n");
  if (ftruncate(fd.get(), 0) != 0 || pwrite(fd.get(), pid.data(), pid.size(), 0) != static_cast<ssize_t>(pid.size())) {
    return ErrnoStatus(absl::StrCat("write ", LockPath(state_dir)), errno);
  }
  return fd;
}

absl::StatusOr<pid_t> LivingSupervisor(const std::string& state_dir) {
  ASSIGN_OR_RETURN(const UniqueFd fd, OpenLock(state_dir));
  // A shared lock, so that two that look at the same time do not take each other for a supervisor.
  if (flock(fd.get(), LOCK_SH | LOCK_NB) == 0) return 0;
  if (errno != EWOULDBLOCK) return ErrnoStatus(absl::StrCat("lock ", LockPath(state_dir)), errno);
  char buffer[32] = {};
  pid_t pid = 0;
  const ssize_t size = pread(fd.get(), buffer, sizeof(buffer) - 1, 0);
  if (size <= 0 || !absl::SimpleAtoi(absl::StripAsciiWhitespace(buffer), &pid) || pid <= 1) {
    return absl::UnavailableError(absl::StrCat(LockPath(state_dir), ": a supervisor is just starting"));
  }
  return pid;
}

std::string LastLines(const std::string& path, int lines) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return "";
  const off_t end = lseek(fd.get(), 0, SEEK_END);
  const off_t begin = std::max<off_t>(0, end - kMaxTailBytes);
  std::string text(static_cast<size_t>(std::max<off_t>(0, end - begin)), '\0');
  const ssize_t size = pread(fd.get(), text.data(), text.size(), begin);
  text.resize(size > 0 ? static_cast<size_t>(size) : 0);
  std::vector<std::string> parts = absl::StrSplit(text, '\n', absl::SkipEmpty());
  if (parts.size() > static_cast<size_t>(lines)) parts.erase(parts.begin(), parts.end() - lines);
  return absl::StrJoin(parts, "\n");
}

}  // namespace retort::cli
