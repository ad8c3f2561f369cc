// The logs of task processes, one file per placement: <root>/<job id>/<task id>.<epoch>.log.
//
// A file holds at most kMaxLogBytes; then a marker ends it and the rest is dropped. Thread-safe. Not fsynced: a crash
// of the machine may lose the last lines, which the worker then no longer has.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "retort/v1/common.pb.h"

namespace retort {

inline constexpr int64_t kMaxLogBytes = 64 << 20;

class LogStore {
 public:
  // Errors: kPermissionDenied, kResourceExhausted, kInternal.
  static absl::StatusOr<std::unique_ptr<LogStore>> Open(const std::string& root, int64_t max_log_bytes = kMaxLogBytes);

  // Appends what of `data` (which stands at `offset` of that placement's output) is not there yet; returns the offset
  // to go on from, below `offset` when something before it is missing. The caller has checked that `ref` names a
  // placement of `job_id`. Errors: kInvalidArgument (negative offset, a name that leaves the folder),
  // kResourceExhausted, kInternal.
  absl::StatusOr<int64_t> Append(const std::string& job_id, const v1::TaskRef& ref, int64_t offset,
                                 absl::string_view data);

  // The placements of a job that have a log, by task id and epoch.
  absl::StatusOr<std::vector<v1::TaskRef>> List(const std::string& job_id) const;

  // At most `limit` bytes from `offset` on; empty at the end.
  absl::StatusOr<std::string> Read(const std::string& job_id, const v1::TaskRef& ref, int64_t offset,
                                   int64_t limit) const;

  // Waits until something was appended anywhere after `seen` (0: since Open), or the timeout. Returns the number of
  // appends so far.
  uint64_t WaitForAppend(uint64_t seen, absl::Duration timeout) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  LogStore(std::string root, int64_t max_log_bytes) : root_(std::move(root)), max_log_bytes_(max_log_bytes) {}
  absl::StatusOr<std::string> PathOf(const std::string& job_id, const v1::TaskRef& ref) const;

  const std::string root_;
  const int64_t max_log_bytes_;
  mutable absl::Mutex mu_;  // also makes appends one at a time
  absl::CondVar appended_;
  uint64_t appends_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace retort
