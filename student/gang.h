// One membership of the ranks that train together: how they talk, and the reduction over them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "model/comm/nccl_loader.h"
#include "model/comm/tcp_mesh.h"
#include "retort/v1/rendezvous_service.pb.h"
#include "student/tree_reduction.h"

namespace retort {

struct GangOptions {
  int64_t numel = 0;  // of the gradient
  c10::Device device = c10::kCPU;
  bool plain_all_reduce = false;             // `reduction: nccl`
  std::function<bool(uint64_t)> superseded;  // whether a generation newer than this one is known of
};

// After a call failed, broken() is true and the gang is to be dropped. One thread uses it.
class Gang {
 public:
  // Connects to the members. Errors: as TcpMesh::Connect; kFailedPrecondition (`reduction: nccl` where there is no
  // NCCL).
  static absl::StatusOr<std::unique_ptr<Gang>> Form(const TcpListener& listener, const v1::JoinGangResponse& membership,
                                                    const GangOptions& options);

  int rank() const { return mesh_->rank(); }
  int size() const { return mesh_->size(); }
  uint64_t generation() const { return generation_; }
  bool broken() const { return broken_; }

  // Everybody's message, by rank. Errors: as TcpMesh.
  absl::StatusOr<std::vector<std::string>> GatherMessages(const std::string& mine, size_t max_bytes);
  // Host memory from `source` to those who want it. Errors: as TcpMesh.
  absl::Status SendFrom(int source, const std::vector<bool>& wanted, MutableBytes bytes);

  // A step's gradient: Begin says which micro-batches are this rank's; Leaf and Push take theirs in order; Finish sums
  // over all ranks. Errors of Finish: as Communicator::Exchange.
  IndexRange Begin(int64_t micro_batches);
  at::Tensor& Leaf();
  void Push();
  absl::Status Finish(at::Tensor& sum);

 private:
  Gang() = default;
  absl::Status Note(absl::Status status);

  uint64_t generation_ = 0;
  bool broken_ = false;
  std::unique_ptr<TcpMesh> mesh_;
  std::unique_ptr<DeviceCommunicator> device_;  // null: gradients travel through the host's memory
  std::unique_ptr<TreeReduction> tree_;
  bool plain_all_reduce_ = false;
  at::Tensor leaf_;  // plain_all_reduce: the gradient of one micro-batch, and of those before it
  at::Tensor sum_;
};

}  // namespace retort
