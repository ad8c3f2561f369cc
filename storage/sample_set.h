// A sample set in memory: which of its keys have a trace, which are held, and the queue of those to lease.
//
// A position is prompt index * n + sample index. Prompts that hash the same are the same keys: the first of them stands
// for all (its positions are the canonical ones), the others only count. Not thread-safe; lives on the committer
// thread.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "retort/v1/sample_service.pb.h"
#include "retort/v1/store_records.pb.h"

namespace retort::storage {

class SampleSet {
 public:
  SampleSet(std::string sample_set_id, const v1::SampleSetRecord& record);

  const std::string& id() const { return id_; }
  const v1::SampleSetRecord& record() const { return record_; }
  // Model revision and sampling hash: sets of one family share keys.
  std::string Family() const { return record_.model_revision() + record_.sampling_hash(); }

  // Adds the next prompt; none of its keys is stored, held or queued yet. Returns its index if it is the first with
  // that hash.
  std::optional<int64_t> AddPrompt(absl::string_view prompt_hash);
  void Seal() { record_.set_sealed(true); }

  // The canonical position of a key; none when the set does not hold it.
  std::optional<int64_t> Find(absl::string_view prompt_hash, int32_t sample_index) const;
  std::string KeyAt(int64_t position) const;
  int64_t PromptIndexAt(int64_t position) const { return position / record_.n(); }

  // A trace is there. Counts for every prompt of that hash. `reused`: since before the set was made.
  void MarkStored(int64_t position, absl::string_view finish_reason, bool reused);
  bool IsStored(int64_t position) const { return stored_[static_cast<size_t>(position)]; }

  // Puts a key in line, before or behind the others; no-op when it stands there already.
  void Enqueue(int64_t position, bool first);
  // The next key in line; none when the line is empty. It may have been stored or leased since it was put there.
  std::optional<int64_t> Dequeue();

  void AddLeased(int64_t delta) { leased_count_ += delta; }
  int64_t leased_count() const { return leased_count_; }

  int64_t PositionCount() const { return record_.prompt_count() * record_.n(); }
  int64_t RemainingCount() const { return PositionCount() - trace_count_; }
  // Sealed and every key has a trace: it will never change again.
  bool IsFinished() const { return record_.sealed() && RemainingCount() == 0; }
  v1::SampleSetInfo Info() const;

 private:
  using Hash = std::array<char, 32>;
  static Hash ToHash(absl::string_view bytes);
  int64_t CopiesAt(int64_t position) const;

  const std::string id_;
  v1::SampleSetRecord record_;
  std::vector<Hash> prompt_hashes_;
  absl::flat_hash_map<Hash, int64_t> first_index_;
  absl::flat_hash_map<int64_t, int64_t>
      copies_;                // canonical prompt index -> prompts with its hash, where more than one
  std::vector<bool> stored_;  // by canonical position
  std::vector<bool> queued_;
  std::deque<int64_t> queue_;
  int64_t trace_count_ = 0;
  int64_t leased_count_ = 0;
  std::map<std::string, int64_t> outcomes_;
};

// The name under which a finish reason is counted: itself if short and printable, else "other"; "unknown" when empty.
std::string OutcomeName(absl::string_view finish_reason);

}  // namespace retort::storage
