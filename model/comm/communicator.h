// The ranks of a gang as a set of pairwise byte streams.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace retort {

struct ConstBytes {
  const void* data = nullptr;
  size_t size_bytes = 0;
};
struct MutableBytes {
  void* data = nullptr;
  size_t size_bytes = 0;
};

// One membership of a gang. Every member makes the same calls in the same order. After the first error the object is of
// no more use: tear it down and form a new gang. One thread calls it at a time; Abort may come from any.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Sends send[j] to rank j and fills receive[j] from rank j, for all j at once; both have one entry a rank. Entry
  // `rank()` is copied (both may be the same memory). Sizes are agreed beforehand: what rank i sends to j is as long as
  // what j expects from i; empty entries cost nothing. Memory is the host's or the device's, as the implementation
  // says. Errors: kUnavailable (a peer is gone), kDeadlineExceeded (a peer is silent), kAborted (the gang was
  // superseded, or Abort), kInternal (peers disagree about what is exchanged). The receive buffers are then undefined.
  virtual absl::Status Exchange(absl::Span<const ConstBytes> send, absl::Span<const MutableBytes> receive) = 0;

  // Makes this and every later call fail, here and at the peers.
  virtual void Abort() = 0;
};

// Everyone gets everyone's part: receive[j] is filled with what rank j passed as `mine`.
absl::Status AllGather(Communicator& comm, ConstBytes mine, absl::Span<const MutableBytes> receive);

// `source` sends `bytes` to the ranks for which `wanted` is true; the others take no part in the transfer but call too.
// `wanted` is the same everywhere.
absl::Status SendFrom(Communicator& comm, int source, const std::vector<bool>& wanted, MutableBytes bytes);

}  // namespace retort
