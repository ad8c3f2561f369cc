#include "model/training/fused_linear.h"

#include <ATen/ATen.h>

#include "model/training/head_loss.h"

namespace retort::internal {
namespace {

// Rows of matrices begin at multiples of 16 bytes: what tensor cores' loads want.
constexpr int64_t kAlignment = 8;

int64_t Aligned(int64_t width) { return (width + kAlignment - 1) / kAlignment * kAlignment; }

Wide MakeWide(int64_t tokens, int64_t width, int64_t low, const at::TensorOptions& options) {
  const int64_t padded = Aligned(width + low);
  const at::Tensor all = at::empty({tokens, padded}, options);
  if (padded > width) all.narrow(1, width, padded - width).zero_();
  return {all.narrow(1, 0, width + low), all.narrow(1, 0, width)};
}

at::Tensor Dropped(const at::Tensor& x, const at::Tensor& mask) { return x * mask.to(x.scalar_type()); }

}  // namespace

FusedLinear::FusedLinear(const std::vector<Module>& modules, int64_t in_features, c10::ScalarType dtype,
                         c10::Device device)
    : in_(in_features) {
  for (const Module& module : modules) {
    const int64_t rows = module.base.weight.size(0);
    if (module.slot != nullptr) {
      parts_.push_back({.slot = module.slot, .row = out_, .first = ranks_, .rank = module.slot->rank});
      ranks_ += module.slot->rank;
    }
    out_ += rows;
    biased_ = biased_ || module.base.bias.defined();
  }
  low_ = Aligned(ranks_ + (biased_ ? 1 : 0));
  const int64_t stride = Aligned(in_ + low_);
  operand_ = at::zeros({out_ + low_, stride}, at::TensorOptions(dtype).device(device)).narrow(1, 0, in_ + low_);
  int64_t row = 0;
  for (const Module& module : modules) {
    const int64_t rows = module.base.weight.size(0);
    operand_.narrow(0, row, rows).narrow(1, 0, in_).copy_(module.base.weight);
    if (module.base.bias.defined()) operand_.narrow(0, row, rows).select(1, in_ + ranks_).copy_(module.base.bias);
    row += rows;
  }
}

at::Tensor FusedLinear::A(const Part& part) const {
  return operand_.narrow(0, out_ + part.first, part.rank).narrow(1, 0, in_);
}

at::Tensor FusedLinear::B(const Part& part) const {
  return operand_.narrow(0, part.row, part.slot->out_features).narrow(1, in_ + part.first, part.rank);
}

std::vector<const AdapterSlot*> FusedLinear::slots() const {
  std::vector<const AdapterSlot*> slots;
  for (const Part& part : parts_) slots.push_back(part.slot);
  return slots;
}

void FusedLinear::AppendBlocks(std::vector<FlatBlock>& blocks) const {
  for (const Part& part : parts_) {
    blocks.push_back({.offset = part.slot->a_offset, .rows = part.rank, .columns = in_, .matrix = A(part)});
    blocks.push_back({.offset = part.slot->b_offset,
                      .rows = part.slot->out_features,
                      .columns = part.rank,
                      .matrix = B(part),
                      .scale = static_cast<float>(part.slot->scaling)});
  }
}

Wide FusedLinear::MakeInput(int64_t tokens) const {
  Wide x = MakeWide(tokens, in_, low_, operand_.options());
  if (biased_) x.all.select(1, in_ + ranks_).fill_(1.0);
  return x;
}

Wide FusedLinear::MakeOutputGradient(int64_t tokens) const { return MakeWide(tokens, out_, low_, operand_.options()); }

at::Tensor FusedLinear::Forward(const Wide& x, const Masks& masks, at::Tensor& y) const {
  at::Tensor low;
  if (ranks_ > 0) {
    low = at::empty({x.main.size(0), ranks_}, x.main.options());
    if (masks.empty()) {
      at::mm_out(low, x.main, operand_.narrow(0, out_, ranks_).narrow(1, 0, in_).t());
    } else {
      for (size_t i = 0; i < parts_.size(); ++i) {
        low.narrow(1, parts_[i].first, parts_[i].rank).copy_(at::mm(Dropped(x.main, masks[i]), A(parts_[i]).t()));
      }
    }
    x.all.narrow(1, in_, ranks_).copy_(low);
  }
  at::mm_out(y, x.all, Weight().t());
  return low;
}

at::Tensor FusedLinear::BackwardInput(const Wide& dy, const Masks& masks, at::Tensor& dx) const {
  at::Tensor d_low;
  if (ranks_ > 0) {
    d_low = at::mm(dy.main, Weight().narrow(1, in_, ranks_));
    dy.all.narrow(1, out_, ranks_).copy_(d_low);
  }
  if (!dx.defined()) return d_low;
  if (masks.empty()) {
    at::mm_out(dx, dy.all, operand_.narrow(1, 0, in_));
    return d_low;
  }
  at::mm_out(dx, dy.main, Weight().narrow(1, 0, in_));
  for (size_t i = 0; i < parts_.size(); ++i) {
    dx.add_(Dropped(at::mm(d_low.narrow(1, parts_[i].first, parts_[i].rank), A(parts_[i])), masks[i]));
  }
  return d_low;
}

void FusedLinear::BackwardAdapters(const at::Tensor& dy, const at::Tensor& d_low, const at::Tensor& x,
                                   const at::Tensor& low, const Masks& masks, const FlatAdapter& adapter,
                                   at::Tensor& gradient) const {
  if (parts_.empty()) return;
  const at::Tensor d_a = masks.empty() ? TransposedProduct(d_low, x) : at::Tensor();
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Part& part = parts_[i];
    const AdapterSlot& slot = *part.slot;
    at::Tensor d_b = TransposedProduct(dy.narrow(1, part.row, slot.out_features), low.narrow(1, part.first, part.rank));
    adapter.B(slot, gradient).copy_(d_b.mul_(slot.scaling));
    adapter.A(slot, gradient)
        .copy_(masks.empty() ? d_a.narrow(0, part.first, part.rank)
                             : TransposedProduct(d_low.narrow(1, part.first, part.rank), Dropped(x, masks[i])));
  }
}

}  // namespace retort::internal
