#include "coordinator/log_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/file.h"
#include "common/status.h"

namespace retort {
namespace {

constexpr char kSuffix[] = ".log";

absl::Status WriteAll(int fd, absl::string_view data, const std::string& path) {
  while (!data.empty()) {
    const ssize_t written = write(fd, data.data(), data.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(absl::StrCat("append to ", path), errno);
    data.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<LogStore>> LogStore::Open(const std::string& root, int64_t max_log_bytes) {
  RETURN_IF_ERROR(MakeFolders(root, 0700));
  return std::unique_ptr<LogStore>(new LogStore(root, max_log_bytes));
}

absl::StatusOr<std::string> LogStore::PathOf(const std::string& job_id, const v1::TaskRef& ref) const {
  return JoinBelow(root_, absl::StrCat(job_id, "/", ref.task_id(), ".", ref.epoch(), kSuffix));
}

absl::StatusOr<int64_t> LogStore::Append(const std::string& job_id, const v1::TaskRef& ref, int64_t offset,
                                         absl::string_view data) {
  if (offset < 0) return absl::InvalidArgumentError("offset_bytes: must not be negative");
  ASSIGN_OR_RETURN(const std::string path, PathOf(job_id, ref));
  const int64_t end = offset + static_cast<int64_t>(data.size());
  absl::MutexLock lock(&mu_);
  RETURN_IF_ERROR(MakeFolders(absl::StrCat(root_, "/", job_id), 0700));
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("open ", path), errno);
  struct stat info;
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus(absl::StrCat("stat ", path), errno);
  const int64_t size = info.st_size;
  if (size >= max_log_bytes_) return end;  // full: the marker is written
  if (offset > size) return size;
  if (end <= size) return size;
  data.remove_prefix(static_cast<size_t>(size - offset));
  const bool fills = end >= max_log_bytes_;
  if (fills) data = data.substr(0, static_cast<size_t>(max_log_bytes_ - size));
  RETURN_IF_ERROR(WriteAll(fd.get(), data, path));
  if (fills) {
    RETURN_IF_ERROR(
        WriteAll(fd.get(), absl::StrCat("\n[log cut here: it has reached ", max_log_bytes_, " bytes]\n"), path));
  }
  ++appends_;
  appended_.SignalAll();
  return end;
}

absl::StatusOr<std::vector<v1::TaskRef>> LogStore::List(const std::string& job_id) const {
  ASSIGN_OR_RETURN(const std::string folder, JoinBelow(root_, job_id));
  std::vector<v1::TaskRef> refs;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    absl::string_view stem = name;
    if (!absl::ConsumeSuffix(&stem, kSuffix)) continue;
    const size_t dot = stem.rfind('.');
    uint64_t epoch = 0;
    if (dot == absl::string_view::npos || !absl::SimpleAtoi(stem.substr(dot + 1), &epoch)) continue;
    v1::TaskRef& ref = refs.emplace_back();
    ref.set_task_id(std::string(stem.substr(0, dot)));
    ref.set_epoch(epoch);
  }
  std::sort(refs.begin(), refs.end(), [](const v1::TaskRef& a, const v1::TaskRef& b) {
    return a.epoch() != b.epoch() ? a.epoch() < b.epoch() : a.task_id() < b.task_id();
  });
  return refs;
}

absl::StatusOr<std::string> LogStore::Read(const std::string& job_id, const v1::TaskRef& ref, int64_t offset,
                                           int64_t limit) const {
  ASSIGN_OR_RETURN(const std::string path, PathOf(job_id, ref));
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(absl::StrCat("open ", path), errno);
  std::string data(static_cast<size_t>(limit), '\0');
  const ssize_t size = pread(fd.get(), data.data(), data.size(), offset);
  if (size < 0) return ErrnoStatus(absl::StrCat("read ", path), errno);
  data.resize(static_cast<size_t>(size));
  return data;
}

uint64_t LogStore::WaitForAppend(uint64_t seen, absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  absl::MutexLock lock(&mu_);
  while (appends_ <= seen && absl::Now() < deadline) appended_.WaitWithDeadline(&mu_, deadline);
  return appends_;
}

}  // namespace retort
