// The store's only question to the coordinator: does this placement of a task still count?
#pragma once

#include "absl/status/status.h"
#include "retort/v1/common.pb.h"

namespace retort::storage {

// Implemented by the coordinator. Called on the store's committer thread and on RPC threads, often: it must be quick
// and must not call into the store. Who holds a lock that Check takes must not wait for the store.
class TaskFence {
 public:
  virtual ~TaskFence() = default;
  // OK: `ref` is the task's current placement. kFailedPrecondition: it is not, and never will be again. Anything else:
  // not known now; the request that asked fails with that status and may be repeated.
  virtual absl::Status Check(const v1::TaskRef& ref) = 0;
};

}  // namespace retort::storage
