#include "teacher_gen/trace_committer.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/fault.h"

namespace retort {
namespace {

// Traces of one request: the store syncs its disk once for all of them.
constexpr size_t kMaxBatch = 64;

}  // namespace

TraceCommitter::TraceCommitter(CommitCalls calls, int64_t max_waiting)
    : calls_(std::move(calls)), max_waiting_(max_waiting), thread_([this] { Work(); }) {}

TraceCommitter::~TraceCommitter() {
  {
    const absl::MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  thread_.join();
}

absl::Status TraceCommitter::Add(v1::CommitTracesRequest::Item item) {
  const absl::MutexLock lock(&mu_);
  while (static_cast<int64_t>(waiting_.size()) >= max_waiting_ && failure_.ok()) changed_.Wait(&mu_);
  if (!failure_.ok()) return failure_;
  const v1::TraceKey& key = item.trace().key();
  std::erase_if(partials_, [&](const v1::SavePartialsRequest::Item& partial) {
    const v1::TraceKey& other = partial.partial().key();
    return other.sample_index() == key.sample_index() && other.prompt_hash() == key.prompt_hash() &&
           other.model_revision() == key.model_revision() && other.sampling_hash() == key.sampling_hash();
  });
  waiting_.push_back(std::move(item));
  changed_.SignalAll();
  return absl::OkStatus();
}

void TraceCommitter::SavePartials(std::vector<v1::SavePartialsRequest::Item> items) {
  if (items.empty()) return;
  const absl::MutexLock lock(&mu_);
  partials_ = std::move(items);
  changed_.SignalAll();
}

absl::Status TraceCommitter::Flush() {
  const absl::MutexLock lock(&mu_);
  while ((!waiting_.empty() || busy_) && failure_.ok()) changed_.Wait(&mu_);
  return failure_;
}

std::map<std::string, int64_t> TraceCommitter::outcomes() const {
  const absl::MutexLock lock(&mu_);
  return outcomes_;
}

int64_t TraceCommitter::stored() const {
  const absl::MutexLock lock(&mu_);
  return stored_;
}

void TraceCommitter::Work() {
  for (;;) {
    std::vector<v1::CommitTracesRequest::Item> traces;
    std::vector<v1::SavePartialsRequest::Item> partials;
    {
      const absl::MutexLock lock(&mu_);
      busy_ = false;
      changed_.SignalAll();
      while (waiting_.empty() && partials_.empty() && !stopping_) changed_.Wait(&mu_);
      if (stopping_ || !failure_.ok()) return;
      while (!waiting_.empty() && traces.size() < kMaxBatch) {
        traces.push_back(std::move(waiting_.front()));
        waiting_.pop_front();
      }
      if (traces.empty()) partials = std::exchange(partials_, {});
      busy_ = true;
      changed_.SignalAll();
    }
    if (!traces.empty()) {
      Commit(std::move(traces));
    } else {
      // A checkpoint, not a result: when it cannot be kept, a successor repeats a little more.
      const auto outcomes = calls_.save_partials(std::move(partials));
      if (!outcomes.ok()) spdlog::warn("partials_not_saved error=\"{}\"", outcomes.status().ToString());
    }
  }
}

void TraceCommitter::Commit(std::vector<v1::CommitTracesRequest::Item> items) {
  std::vector<std::string> reasons;
  reasons.reserve(items.size());
  for (const auto& item : items) reasons.push_back(item.trace().finish_reason());
  MAYBE_FAULT("teacher.before_commit");
  const auto outcomes = calls_.commit(std::move(items));
  MAYBE_FAULT("teacher.after_commit");
  const absl::MutexLock lock(&mu_);
  if (!outcomes.ok()) {
    failure_ = outcomes.status();
    changed_.SignalAll();
    return;
  }
  int64_t fenced = 0;
  for (size_t i = 0; i < reasons.size() && i < outcomes->size(); ++i) {
    if ((*outcomes)[i] == v1::COMMIT_OUTCOME_FENCED) {
      ++fenced;
      continue;
    }
    ++stored_;
    ++outcomes_[reasons[i]];
  }
  if (fenced > 0) {
    outcomes_["fenced"] += fenced;
    spdlog::warn("traces_refused count={} reason=\"their leases have moved on\"", fenced);
  }
}

}  // namespace retort
