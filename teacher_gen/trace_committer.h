// Stores traces and partial traces from a thread of its own, so that generation does not wait for the store's disk.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "retort/v1/sample_service.pb.h"

namespace retort {

// The two calls of the sample store that it makes.
struct CommitCalls {
  std::function<absl::StatusOr<std::vector<v1::CommitOutcome>>(std::vector<v1::CommitTracesRequest::Item>)> commit;
  std::function<absl::StatusOr<std::vector<v1::CommitOutcome>>(std::vector<v1::SavePartialsRequest::Item>)>
      save_partials;
};

// Thread-safe.
class TraceCommitter {
 public:
  // Add blocks while `max_waiting` traces wait.
  TraceCommitter(CommitCalls calls, int64_t max_waiting);
  // What still waits is not stored: Flush first.
  ~TraceCommitter();

  // Errors: that of an earlier commit.
  absl::Status Add(v1::CommitTracesRequest::Item item) ABSL_LOCKS_EXCLUDED(mu_);
  // Replaces partials that wait. A partial of a trace that was added is dropped: the trace says more.
  void SavePartials(std::vector<v1::SavePartialsRequest::Item> items) ABSL_LOCKS_EXCLUDED(mu_);
  // Returns when everything added is stored. Errors: that of a commit.
  absl::Status Flush() ABSL_LOCKS_EXCLUDED(mu_);

  // Stored by this committer, by finish reason; "fenced" counts those whose lease had moved on.
  std::map<std::string, int64_t> outcomes() const ABSL_LOCKS_EXCLUDED(mu_);
  int64_t stored() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Work() ABSL_LOCKS_EXCLUDED(mu_);
  void Commit(std::vector<v1::CommitTracesRequest::Item> items) ABSL_LOCKS_EXCLUDED(mu_);

  const CommitCalls calls_;
  const int64_t max_waiting_;
  mutable absl::Mutex mu_;
  absl::CondVar changed_;
  std::deque<v1::CommitTracesRequest::Item> waiting_ ABSL_GUARDED_BY(mu_);
  std::vector<v1::SavePartialsRequest::Item> partials_ ABSL_GUARDED_BY(mu_);
  bool busy_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, int64_t> outcomes_ ABSL_GUARDED_BY(mu_);
  int64_t stored_ ABSL_GUARDED_BY(mu_) = 0;
  std::thread thread_;
};

}  // namespace retort
