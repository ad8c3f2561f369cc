#include "storage/lease_table.h"

#include <algorithm>

#include "common/check.h"

namespace retort::storage {

void LeaseTable::Add(const std::string& trace_key, Lease lease) {
  by_holder_[HolderId(lease.holder.task_id(), lease.holder.epoch())].insert(trace_key);
  RETORT_CHECK(leases_.try_emplace(trace_key, std::move(lease)).second);
}

Lease* LeaseTable::Find(absl::string_view trace_key) {
  const auto it = leases_.find(trace_key);
  return it == leases_.end() ? nullptr : &it->second;
}

void LeaseTable::Remove(absl::string_view trace_key) {
  const auto it = leases_.find(trace_key);
  RETORT_CHECK(it != leases_.end());
  const auto holder = by_holder_.find(HolderId(it->second.holder.task_id(), it->second.holder.epoch()));
  RETORT_CHECK(holder != by_holder_.end());
  holder->second.erase(trace_key);
  if (holder->second.empty()) by_holder_.erase(holder);
  leases_.erase(it);
}

void LeaseTable::Clear() {
  leases_.clear();
  by_holder_.clear();
}

std::vector<std::string> LeaseTable::KeysOf(absl::string_view task_id, uint64_t epoch) const {
  const auto it = by_holder_.find(HolderId(std::string(task_id), epoch));
  if (it == by_holder_.end()) return {};
  std::vector<std::string> keys(it->second.begin(), it->second.end());
  std::sort(keys.begin(), keys.end(), [this](const std::string& a, const std::string& b) {
    return leases_.find(a)->second.lease_epoch < leases_.find(b)->second.lease_epoch;
  });
  return keys;
}

std::vector<v1::TaskRef> LeaseTable::Holders() const {
  std::vector<v1::TaskRef> holders;
  for (const auto& [id, keys] : by_holder_) {
    v1::TaskRef& ref = holders.emplace_back();
    ref.set_task_id(id.first);
    ref.set_epoch(id.second);
  }
  return holders;
}

}  // namespace retort::storage
