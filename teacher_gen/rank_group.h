// Several processes that share one model: `--tensor-parallel-size N` of generate and score.
//
// The process that the user started is rank 0. It starts the others as copies of its own command on this machine, tells
// them where everyone listens through their standard input, and hands on what it reads itself. All ranks then run the
// same program on the same lines; rank 0 alone writes.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/process.h"
#include "model/comm/nccl_loader.h"
#include "model/comm/tcp_mesh.h"
#include "model/parallel/tensor_group.h"

namespace retort {

// The flag, hidden from --help, that tells a copy which rank it is.
inline constexpr const char* kRankFlag = "--tensor-parallel-rank";

class RankGroup {
 public:
  // `argv` is this command's (argv[0] the verb). On the CPU tensors travel by TCP on loopback, on GPUs by NCCL; where
  // there are fewer GPUs than ranks, they share (through sockets: slow). Errors: kUnavailable (a rank could not be
  // started, or ended; it says why on standard error), kFailedPrecondition (no NCCL), kDeadlineExceeded.
  static absl::StatusOr<std::unique_ptr<RankGroup>> Start(int rank, int size, bool cuda,
                                                          const std::vector<std::string>& argv);
  ~RankGroup();

  TensorGroup* tensors() { return tensors_.get(); }
  // Rank 0's `lines` to everyone; the others' are replaced. Errors: as Communicator::Exchange.
  absl::Status Broadcast(std::vector<std::string>& lines);

 private:
  RankGroup() = default;
  absl::Status StartOthers(int size, const std::vector<std::string>& argv, const std::string& own_address,
                           TcpMeshOptions& options);

  std::vector<ChildProcess> children_;  // rank 0's
  std::unique_ptr<TcpListener> listener_;
  std::unique_ptr<TcpMesh> mesh_;
  std::unique_ptr<DeviceCommunicator> device_;  // null on the CPU
  std::unique_ptr<TensorGroup> tensors_;
};

}  // namespace retort
