#include "worker/state_folder.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/id.h"
#include "common/status.h"

namespace retort::worker {
namespace {

constexpr int64_t kMaxIdFileBytes = 256;

bool IsWorkerId(const std::string& text) {
  return !text.empty() && text.size() <= 64 && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-';
  });
}

absl::StatusOr<std::string> ReadOrMakeWorkerId(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path, kMaxIdFileBytes);
  if (absl::IsNotFound(text.status())) {
    const std::string id = absl::StrCat("worker-", RandomHex(12));
    RETURN_IF_ERROR(WriteFileAtomically(path, absl::StrCat(id, "\n"), 0600));
    return id;
  }
  RETURN_IF_ERROR(text.status());
  absl::StripAsciiWhitespace(&*text);
  if (!IsWorkerId(*text)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": holds no worker id; delete it and the worker gets a new one"));
  }
  return *text;
}

}  // namespace

absl::StatusOr<StateFolder> OpenStateFolder(const std::string& path) {
  RETURN_IF_ERROR(MakeFolders(path, 0700));
  char* absolute = realpath(path.c_str(), nullptr);
  if (absolute == nullptr) return ErrnoStatus(absl::StrCat("resolve ", path), errno);
  StateFolder folder;
  folder.path = absolute;
  std::free(absolute);

  const std::string lock_path = folder.path + "/lock";
  folder.lock.Reset(open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!folder.lock.valid()) return ErrnoStatus(absl::StrCat("open ", lock_path), errno);
  if (flock(folder.lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) return ErrnoStatus(absl::StrCat("lock ", lock_path), errno);
    return absl::AlreadyExistsError(
        absl::StrCat(folder.path, " is used by another worker daemon; stop it, or give this one its own --state-dir"));
  }
  RETURN_IF_ERROR(MakeFolders(folder.tasks_folder(), 0700));
  RETURN_IF_ERROR(MakeFolders(folder.cache_folder(), 0700));
  ASSIGN_OR_RETURN(folder.worker_id, ReadOrMakeWorkerId(folder.path + "/worker_id"));
  return folder;
}

}  // namespace retort::worker
