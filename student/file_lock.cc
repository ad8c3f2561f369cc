#include "student/file_lock.h"

#include <fcntl.h>
#include <sys/file.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status.h"

namespace retort {

absl::StatusOr<UniqueFd> LockFile(const std::string& path, const std::function<void(absl::Duration waited)>& waiting) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("open ", path), errno);
  const absl::Time start = absl::Now();
  absl::Time tell_at = start;
  while (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) return ErrnoStatus(absl::StrCat("lock ", path), errno);
    if (const absl::Time now = absl::Now(); waiting && now >= tell_at) {
      waiting(now - start);
      tell_at = now + absl::Seconds(2);
    }
    absl::SleepFor(absl::Milliseconds(20));
  }
  return fd;
}

}  // namespace retort
