#include "model/parallel/tensor_group.h"

#include <ATen/ATen.h>

#include <numeric>

namespace retort {
namespace {

// Below this everyone sends everything to everyone: one exchange. Above, each rank sums a range: two exchanges of less.
constexpr int64_t kDirectBytes = 64 << 10;

ConstBytes Const(const at::Tensor& tensor) { return {tensor.const_data_ptr(), tensor.nbytes()}; }
MutableBytes Mutable(at::Tensor& tensor) { return {tensor.mutable_data_ptr(), tensor.nbytes()}; }

// Every rank's tensor, each flat.
std::vector<at::Tensor> Room(const at::Tensor& like, const std::vector<int64_t>& sizes) {
  std::vector<at::Tensor> room;
  room.reserve(sizes.size());
  for (const int64_t size : sizes) room.push_back(at::empty({size}, like.options()));
  return room;
}

std::vector<MutableBytes> Spans(std::vector<at::Tensor>& tensors) {
  std::vector<MutableBytes> spans;
  spans.reserve(tensors.size());
  for (at::Tensor& tensor : tensors) spans.push_back(Mutable(tensor));
  return spans;
}

at::Tensor SumInOrder(const std::vector<at::Tensor>& parts) {
  at::Tensor sum = parts[0].to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
  for (size_t i = 1; i < parts.size(); ++i) sum.add_(parts[i]);
  return sum.to(parts[0].scalar_type());
}

}  // namespace

at::Tensor TensorGroup::AllReduce(const at::Tensor& partial) {
  if (size() == 1 || !status_.ok()) return partial;
  const auto ranks = static_cast<size_t>(size());
  const at::Tensor mine = partial.contiguous().view({-1});
  if (static_cast<int64_t>(mine.nbytes()) <= kDirectBytes) {
    std::vector<at::Tensor> all = Room(mine, std::vector<int64_t>(ranks, mine.numel()));
    status_ = AllGather(comm_, Const(mine), Spans(all));
    return status_.ok() ? SumInOrder(all).view(partial.sizes()) : partial;
  }
  const auto bound = [&](size_t rank) { return mine.numel() * static_cast<int64_t>(rank) / size(); };
  std::vector<int64_t> sizes(ranks);
  for (size_t i = 0; i < ranks; ++i) sizes[i] = bound(i + 1) - bound(i);
  const int64_t own = sizes[static_cast<size_t>(rank())];
  std::vector<at::Tensor> parts = Room(mine, std::vector<int64_t>(ranks, own));
  std::vector<ConstBytes> send;
  for (size_t i = 0; i < ranks; ++i) send.push_back(Const(mine.narrow(0, bound(i), sizes[i])));
  status_ = comm_.Exchange(send, Spans(parts));
  if (!status_.ok()) return partial;
  const at::Tensor sum = SumInOrder(parts);
  at::Tensor result = at::empty_like(mine);
  std::vector<MutableBytes> receive;
  for (size_t i = 0; i < ranks; ++i) {
    at::Tensor range = result.narrow(0, bound(i), sizes[i]);
    receive.push_back(Mutable(range));
  }
  status_ = AllGather(comm_, Const(sum), receive);
  return status_.ok() ? result.view(partial.sizes()) : partial;
}

at::Tensor TensorGroup::GatherColumns(const at::Tensor& mine, const std::vector<int64_t>& columns) {
  if (size() == 1) return mine;
  const int64_t rows = mine.size(0);
  if (!status_.ok()) {
    return at::zeros({rows, std::accumulate(columns.begin(), columns.end(), int64_t{0})}, mine.options());
  }
  std::vector<int64_t> sizes;
  sizes.reserve(columns.size());
  for (const int64_t count : columns) sizes.push_back(rows * count);
  std::vector<at::Tensor> all = Room(mine, sizes);
  status_ = AllGather(comm_, Const(mine.contiguous()), Spans(all));
  for (size_t i = 0; i < all.size(); ++i) all[i] = all[i].view({rows, columns[i]});
  return at::cat(all, 1);
}

}  // namespace retort
