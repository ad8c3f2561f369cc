// The live leases in memory: by key and by holder. Not thread-safe; lives on the committer thread, which writes each
// change to the database as well.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/string_view.h"
#include "retort/v1/common.pb.h"

namespace retort::storage {

struct Lease {
  v1::TaskRef holder;
  uint64_t lease_epoch = 0;
  std::string request_id;
  size_t partial_tokens = 0;  // length of the longest partial saved under this lease since Open
};

class LeaseTable {
 public:
  // The key must not be leased.
  void Add(const std::string& trace_key, Lease lease);
  // Null when nobody holds it.
  Lease* Find(absl::string_view trace_key);
  // The key must be leased.
  void Remove(absl::string_view trace_key);
  void Clear();

  // In the order in which they were leased.
  std::vector<std::string> KeysOf(absl::string_view task_id, uint64_t epoch) const;
  std::vector<v1::TaskRef> Holders() const;
  size_t size() const { return leases_.size(); }
  const absl::flat_hash_map<std::string, Lease>& leases() const { return leases_; }

 private:
  using HolderId = std::pair<std::string, uint64_t>;  // task id, epoch

  absl::flat_hash_map<std::string, Lease> leases_;
  std::map<HolderId, absl::flat_hash_set<std::string>> by_holder_;
};

}  // namespace retort::storage
