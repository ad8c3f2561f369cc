// NCCL, which lives in a plug-in library (libretort_nccl.so) that is opened where there is a GPU.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/comm/communicator.h"
#include "model/comm/tcp_mesh.h"

namespace retort {

// Moves device memory. Calls return when the transfer is done, on the current stream of the device.
class DeviceCommunicator : public Communicator {
 public:
  // Sums `values` ([count], device memory) over all ranks, in NCCL's own order. Errors: as Exchange.
  virtual absl::Status AllReduceSum(float* values, int64_t count) = 0;
};

// Joins the ranks of `mesh` by NCCL, collectively. Waits are bounded by the mesh's silence_timeout: a peer's death
// shows on `mesh` first or by that time-out. Does not own `mesh`, which must outlive the result. Errors:
// kFailedPrecondition (no plug-in or no NCCL library on this machine: says which file was tried), as Exchange (a peer
// failed), kInternal (NCCL's message).
absl::StatusOr<std::unique_ptr<DeviceCommunicator>> OpenNccl(TcpMesh& mesh, int device_index);

// What the plug-in exports under kNcclFactoryName.
using NcclFactory = absl::StatusOr<std::unique_ptr<DeviceCommunicator>> (*)(TcpMesh& mesh, int device_index);
inline constexpr char kNcclFactoryName[] = "RetortOpenNccl";
inline constexpr char kNcclLibraryName[] = "libretort_nccl.so";

}  // namespace retort
