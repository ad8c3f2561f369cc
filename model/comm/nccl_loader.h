// NCCL, which lives in a plug-in library (libretort_nccl.so) that is opened where there is a GPU.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/comm/communicator.h"
#include "model/comm/tcp_mesh.h"

namespace retort {

// Moves device memory. A call waits for work that was queued on the device before, and returns when the transfer is
// done.
class DeviceCommunicator : public Communicator {
 public:
  // Sums `values` ([count], device memory) over all ranks, in NCCL's own order. Errors: as Exchange.
  virtual absl::Status AllReduceSum(float* values, int64_t count) = 0;
};

// Joins the ranks of `mesh` by NCCL, collectively. A peer whose process dies shows on `mesh` and ends the wait; one
// that is stopped does after the mesh's silence_timeout. Does not own `mesh`, which must outlive the result. Errors:
// kFailedPrecondition (some rank has no plug-in or no NCCL library: says what was tried), as Exchange (a peer failed),
// kInternal (NCCL's message).
absl::StatusOr<std::unique_ptr<DeviceCommunicator>> OpenNccl(TcpMesh& mesh, int device_index);

}  // namespace retort
