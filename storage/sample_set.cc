#include "storage/sample_set.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
#include "common/check.h"
#include "storage/database.h"

namespace retort::storage {

SampleSet::SampleSet(std::string sample_set_id, const v1::SampleSetRecord& record)
    : id_(std::move(sample_set_id)), record_(record) {
  record_.set_prompt_count(0);
}

SampleSet::Hash SampleSet::ToHash(absl::string_view bytes) {
  RETORT_CHECK(bytes.size() == sizeof(Hash));
  Hash hash;
  std::memcpy(hash.data(), bytes.data(), hash.size());
  return hash;
}

std::optional<int64_t> SampleSet::AddPrompt(absl::string_view prompt_hash) {
  const Hash hash = ToHash(prompt_hash);
  const int64_t index = record_.prompt_count();
  record_.set_prompt_count(index + 1);
  prompt_hashes_.push_back(hash);
  const auto positions = static_cast<size_t>(PositionCount());
  stored_.resize(positions);
  queued_.resize(positions);
  const auto [it, is_first] = first_index_.try_emplace(hash, index);
  if (is_first) return index;

  int64_t& copies = copies_.try_emplace(it->second, 1).first->second;
  ++copies;
  for (int32_t sample = 0; sample < record_.n(); ++sample) {
    // The reason is not kept by position; a copy counts as what the set found when it was declared.
    if (IsStored(it->second * record_.n() + sample)) {
      ++trace_count_;
      ++outcomes_["reused"];
    }
  }
  return std::nullopt;
}

std::optional<int64_t> SampleSet::Find(absl::string_view prompt_hash, int32_t sample_index) const {
  if (sample_index >= record_.n()) return std::nullopt;
  const auto it = first_index_.find(ToHash(prompt_hash));
  if (it == first_index_.end()) return std::nullopt;
  return it->second * record_.n() + sample_index;
}

std::string SampleSet::KeyAt(int64_t position) const {
  const Hash& hash = prompt_hashes_[static_cast<size_t>(PromptIndexAt(position))];
  return EncodeTraceKey(record_.model_revision(), record_.sampling_hash(), absl::string_view(hash.data(), hash.size()),
                        static_cast<int32_t>(position % record_.n()));
}

int64_t SampleSet::CopiesAt(int64_t position) const {
  const auto it = copies_.find(PromptIndexAt(position));
  return it == copies_.end() ? 1 : it->second;
}

void SampleSet::MarkStored(int64_t position, absl::string_view finish_reason, bool reused) {
  RETORT_CHECK(!IsStored(position));
  stored_[static_cast<size_t>(position)] = true;
  const int64_t copies = CopiesAt(position);
  trace_count_ += copies;
  outcomes_[reused ? "reused" : OutcomeName(finish_reason)] += copies;
}

void SampleSet::Enqueue(int64_t position, bool first) {
  if (queued_[static_cast<size_t>(position)]) return;
  queued_[static_cast<size_t>(position)] = true;
  if (first) {
    queue_.push_front(position);
  } else {
    queue_.push_back(position);
  }
}

std::optional<int64_t> SampleSet::Dequeue() {
  if (queue_.empty()) return std::nullopt;
  const int64_t position = queue_.front();
  queue_.pop_front();
  queued_[static_cast<size_t>(position)] = false;
  return position;
}

v1::SampleSetInfo SampleSet::Info() const {
  v1::SampleSetInfo info;
  info.set_sample_set_id(id_);
  info.set_sealed(record_.sealed());
  info.set_prompt_count(record_.prompt_count());
  info.set_n(record_.n());
  info.set_trace_count(trace_count_);
  info.set_leased_count(leased_count_);
  info.set_model_revision(record_.model_revision());
  info.set_sampling_hash(record_.sampling_hash());
  for (const auto& [reason, count] : outcomes_) (*info.mutable_outcomes()->mutable_counts())[reason] = count;
  return info;
}

std::string OutcomeName(absl::string_view finish_reason) {
  if (finish_reason.empty()) return "unknown";
  const bool plain = finish_reason.size() <= 64 && std::all_of(finish_reason.begin(), finish_reason.end(), [](char c) {
                       return absl::ascii_isgraph(static_cast<unsigned char>(c));
                     });
  return plain ? std::string(finish_reason) : "other";
}

}  // namespace retort::storage
