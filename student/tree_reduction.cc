#include "student/tree_reduction.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/status.h"

namespace retort {

void TreeReduction::Add::operator()(at::Tensor& left, at::Tensor& right) const {
  left.add_(right);
  if (spare != nullptr) spare->push_back(std::move(right));
}

TreeReduction::TreeReduction(Communicator& comm, int64_t numel, c10::Device device, bool host_memory)
    : comm_(comm), numel_(numel), device_(device), stage_on_host_(host_memory && !device.is_cpu()) {}

IndexRange TreeReduction::Begin(int64_t leaves) {
  RETORT_CHECK(leaves >= 1);
  if (!fold_.empty()) {
    for (auto& node : fold_.back().Take()) spare_.push_back(std::move(node.value));
    fold_.clear();
  }
  leaves_ = leaves;
  fold_.emplace_back(leaves, Add{&spare_});
  const IndexRange range = BalancedRange(leaves, comm_.size(), comm_.rank());
  next_leaf_ = range.begin;
  return range;
}

at::Tensor& TreeReduction::Leaf() {
  if (!leaf_.defined()) {
    if (spare_.empty()) spare_.push_back(at::empty({numel_}, at::TensorOptions().dtype(at::kFloat).device(device_)));
    leaf_ = std::move(spare_.back());
    spare_.pop_back();
  }
  return leaf_;
}

void TreeReduction::Push() {
  RETORT_CHECK(!fold_.empty() && leaf_.defined() && next_leaf_ < leaves_);
  fold_.back().Push({next_leaf_++, 0}, std::exchange(leaf_, {}));
}

absl::Status TreeReduction::Finish(at::Tensor& sum) {
  RETORT_CHECK(!fold_.empty() && sum.numel() == numel_ && sum.is_contiguous());
  RETORT_CHECK(next_leaf_ == BalancedRange(leaves_, comm_.size(), comm_.rank()).end);
  std::vector<Fold::Node> own = fold_.back().Take();
  fold_.clear();
  absl::Status status;
  if (comm_.size() == 1) {
    RETORT_CHECK(own.size() == 1);
    sum.copy_(own.front().value);
  } else {
    status = FinishAcrossRanks(own, sum);
  }
  for (auto& node : own) spare_.push_back(std::move(node.value));
  return status;
}

absl::Status TreeReduction::FinishAcrossRanks(const std::vector<Fold::Node>& own, at::Tensor& sum) {
  const int ranks = comm_.size();
  const int self = comm_.rank();
  std::vector<std::vector<Subtree>> planned;
  size_t rounds = 0;
  int64_t subtrees = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    planned.push_back(MaximalSubtrees(BalancedRange(leaves_, ranks, rank), leaves_));
    rounds = std::max(rounds, planned.back().size());
    subtrees += static_cast<int64_t>(planned.back().size());
  }
  RETORT_CHECK(planned[self].size() == own.size());

  const c10::Device exchange_device = stage_on_host_ ? c10::Device(c10::kCPU) : device_;
  const IndexRange slice = BalancedRange(numel_, ranks, self);
  if (!inbox_.defined() || inbox_.size(0) < subtrees) {
    inbox_ = at::empty({subtrees, slice.size()}, at::TensorOptions().dtype(at::kFloat).device(exchange_device));
  }
  at::Tensor whole = stage_on_host_ ? at::empty({numel_}, at::kFloat) : sum;

  // Row of the inbox where a rank's first subtree goes; the rows are in the order of the leaves.
  std::vector<int64_t> first_row(ranks, 0);
  for (int rank = 1; rank < ranks; ++rank) {
    first_row[rank] = first_row[rank - 1] + static_cast<int64_t>(planned[rank - 1].size());
  }
  float* const inbox = inbox_.data_ptr<float>();
  for (size_t round = 0; round < rounds; ++round) {
    std::vector<ConstBytes> send(ranks);
    std::vector<MutableBytes> receive(ranks);
    at::Tensor outgoing;  // keeps the host's copy alive
    if (round < own.size()) outgoing = stage_on_host_ ? own[round].value.cpu() : own[round].value;
    for (int rank = 0; rank < ranks; ++rank) {
      if (outgoing.defined()) {
        const IndexRange theirs = BalancedRange(numel_, ranks, rank);
        send[rank] = {outgoing.data_ptr<float>() + theirs.begin, static_cast<size_t>(theirs.size()) * sizeof(float)};
      }
      if (round < planned[rank].size()) {
        receive[rank] = {inbox + (first_row[rank] + static_cast<int64_t>(round)) * slice.size(),
                         static_cast<size_t>(slice.size()) * sizeof(float)};
      }
    }
    RETURN_IF_ERROR(comm_.Exchange(send, receive));
  }

  Fold fold(leaves_, Add{nullptr});
  for (int rank = 0; rank < ranks; ++rank) {
    for (size_t i = 0; i < planned[rank].size(); ++i) {
      fold.Push(planned[rank][i], inbox_.select(0, first_row[rank] + static_cast<int64_t>(i)));
    }
  }
  const std::vector<Fold::Node> root = fold.Take();
  RETORT_CHECK(root.size() == 1);
  whole.narrow(0, slice.begin, slice.size()).copy_(root.front().value);

  std::vector<MutableBytes> slices(ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    const IndexRange theirs = BalancedRange(numel_, ranks, rank);
    slices[rank] = {whole.data_ptr<float>() + theirs.begin, static_cast<size_t>(theirs.size()) * sizeof(float)};
  }
  RETURN_IF_ERROR(AllGather(comm_, {slices[self].data, slices[self].size_bytes}, slices));
  if (stage_on_host_) sum.copy_(whole);
  return absl::OkStatus();
}

}  // namespace retort
