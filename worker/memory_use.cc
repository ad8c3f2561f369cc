#include "worker/memory_use.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/file.h"

namespace retort::worker {
namespace {

constexpr size_t kGroupField = 2;      // fields after the name in /proc/<pid>/stat: state, parent, group, ...
constexpr size_t kResidentField = 21;  // pages

}  // namespace

int64_t ResidentBytesOfGroup(pid_t leader) {
  int64_t pages = 0;
  DIR* folder = opendir("/proc");
  if (folder == nullptr) return 0;
  while (const dirent* entry = readdir(folder)) {
    pid_t pid = 0;
    if (!absl::SimpleAtoi(entry->d_name, &pid)) continue;
    const UniqueFd fd(open(absl::StrCat("/proc/", pid, "/stat").c_str(), O_RDONLY | O_CLOEXEC));
    char buffer[2048];
    const ssize_t size = fd.valid() ? read(fd.get(), buffer, sizeof(buffer)) : -1;
    if (size <= 0) continue;
    const std::string text(buffer, static_cast<size_t>(size));
    const size_t name_end = text.rfind(')');
    if (name_end == std::string::npos || name_end + 2 >= text.size()) continue;
    const std::vector<std::string> fields = absl::StrSplit(text.substr(name_end + 2), ' ');
    pid_t group = 0;
    int64_t resident = 0;
    if (fields.size() > kResidentField && absl::SimpleAtoi(fields[kGroupField], &group) && group == leader &&
        absl::SimpleAtoi(fields[kResidentField], &resident)) {
      pages += resident;
    }
  }
  closedir(folder);
  return pages * sysconf(_SC_PAGESIZE);
}

}  // namespace retort::worker
