// The ranks of a tensor-parallel model: sums and gathers of tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "model/comm/communicator.h"

namespace retort {

// Every rank makes the same calls in the same order with tensors of the same shapes. Results have the same bits on
// every rank, and depend on the number of ranks alone. One thread calls it at a time. Does not own `comm`, which must
// outlive it and move memory of the tensors' device.
//
// After an error the tensors are undefined and every later call does nothing: ask status() at the end of a pass.
class TensorGroup {
 public:
  explicit TensorGroup(Communicator& comm) : comm_(comm) {}

  int rank() const { return comm_.rank(); }
  int size() const { return comm_.size(); }

  // The sum over the ranks, added up in their order.
  at::Tensor AllReduce(const at::Tensor& partial);
  // [rows, columns of rank 0 + of rank 1 + ...] from each rank's [rows, columns[rank]].
  at::Tensor GatherColumns(const at::Tensor& mine, const std::vector<int64_t>& columns);

  const absl::Status& status() const { return status_; }

 private:
  Communicator& comm_;
  absl::Status status_;
};

}  // namespace retort
