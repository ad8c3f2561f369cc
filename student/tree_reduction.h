// The gradient of a step: the sum over its micro-batches in the fixed tree of model/comm/reduction_plan.h.
//
// Each rank adds up whole subtrees of its own range as their leaves come; then every rank gets one slice of everybody's
// subtrees (all-to-all), finishes the tree on that slice, and the slices are put together (all-gather). A rank holds at
// most log2(micro-batches) + 1 gradients at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "model/comm/communicator.h"
#include "model/comm/reduction_plan.h"

namespace retort {

// Thread-compatible. Does not own `comm`, which must outlive it.
class TreeReduction {
 public:
  // For gradients of `numel` f32 elements on `device`. `host_memory`: `comm` moves the host's memory, so that a GPU's
  // gradients are copied there and back.
  TreeReduction(Communicator& comm, int64_t numel, c10::Device device, bool host_memory);

  // Starts a step of `leaves` micro-batches; returns those of this rank.
  IndexRange Begin(int64_t leaves);
  // Room for the gradient of the next micro-batch of this rank, to be filled before Push.
  at::Tensor& Leaf();
  // Takes what is in Leaf() as the gradient of the next micro-batch.
  void Push();
  // After this rank's last Push: the sum over all micro-batches of all ranks into `sum` ([numel]). Errors: as
  // Communicator::Exchange; `sum` is then undefined.
  absl::Status Finish(at::Tensor& sum);

 private:
  struct Add {
    std::vector<at::Tensor>* spare;
    void operator()(at::Tensor& left, at::Tensor& right) const;
  };
  using Fold = TreeFold<at::Tensor, Add>;

  absl::Status FinishAcrossRanks(const std::vector<Fold::Node>& own, at::Tensor& sum);

  Communicator& comm_;
  const int64_t numel_;
  const c10::Device device_;
  const bool stage_on_host_;
  std::vector<at::Tensor> spare_;  // buffers to use again
  at::Tensor leaf_;
  at::Tensor inbox_;  // [subtrees of all ranks, own slice], where the exchange happens
  int64_t leaves_ = 0;
  int64_t next_leaf_ = 0;
  std::vector<Fold> fold_;  // of the step under way; one or none
};

}  // namespace retort
