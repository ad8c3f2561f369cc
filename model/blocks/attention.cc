#include "model/blocks/attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

namespace retort {
namespace {

// Rows of scores that are held at a time.
constexpr int64_t kQueryBlock = 512;

// A block of query rows of one sequence against the keys it may see, those from `start` to its last row. Heads that
// share keys lie together: [kv_heads, group * rows, ...].
struct Block {
  int64_t begin = 0;  // of the sequence, in the batch
  int64_t first = 0;  // of the rows, in the sequence
  int64_t rows = 0;
  int64_t start = 0;  // of the keys, in the sequence
  int64_t visible() const { return first + rows - start; }
};

std::vector<Block> Blocks(const AttentionShape& shape) {
  std::vector<Block> blocks;
  for (size_t i = 0; i + 1 < shape.offsets.size(); ++i) {
    const int64_t length = shape.offsets[i + 1] - shape.offsets[i];
    for (int64_t first = 0; first < length; first += kQueryBlock) {
      const int64_t start = shape.window > 0 ? std::max<int64_t>(0, first - shape.window + 1) : 0;
      blocks.push_back({shape.offsets[i], first, std::min(kQueryBlock, length - first), start});
    }
  }
  return blocks;
}

// [tokens, heads, width] -> the block's rows, [kv_heads, group * rows, width].
at::Tensor QueryRows(const at::Tensor& x, const Block& block, int64_t kv_heads) {
  const int64_t width = x.size(2);
  return x.narrow(0, block.begin + block.first, block.rows)
      .reshape({block.rows, kv_heads, -1, width})
      .permute({1, 2, 0, 3})
      .reshape({kv_heads, -1, width});
}

// The inverse of QueryRows.
void PutQueryRows(const at::Tensor& rows, const Block& block, at::Tensor& out) {
  const int64_t kv_heads = rows.size(0);
  const int64_t width = rows.size(2);
  out.narrow(0, block.begin + block.first, block.rows)
      .view({block.rows, kv_heads, -1, width})
      .copy_(rows.view({kv_heads, -1, block.rows, width}).permute({2, 0, 1, 3}));
}

// [tokens, kv_heads, width] -> the keys or values that the block sees, [kv_heads, visible, width].
at::Tensor Visible(const at::Tensor& x, const Block& block) {
  return x.narrow(0, block.begin + block.start, block.visible()).transpose(0, 1);
}

// Scaled scores, f32, -inf where a row may not look: [kv_heads, group * rows, visible].
at::Tensor Scores(const at::Tensor& q, const at::Tensor& k, const Block& block, const AttentionShape& shape) {
  at::Tensor scores = at::bmm(q, k.transpose(1, 2)).to(at::kFloat).mul_(shape.scale);
  const int64_t diagonal = block.first - block.start;  // of a row's own token
  const at::Tensor all = at::ones({block.rows, block.visible()}, scores.options().dtype(at::kBool));
  at::Tensor hidden = all.triu(diagonal + 1);
  if (shape.window > 0) hidden = hidden.logical_or(all.tril(diagonal - shape.window));
  scores.view({q.size(0), -1, block.rows, block.visible()})
      .masked_fill_(hidden, -std::numeric_limits<double>::infinity());
  return scores;
}

}  // namespace

Attention AttentionForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const AttentionShape& shape) {
  const int64_t kv_heads = k.size(1);
  Attention result{at::empty({q.size(0), q.size(1), v.size(2)}, q.options()),
                   at::empty({q.size(0), q.size(1)}, q.options().dtype(at::kFloat))};
  at::Tensor log_sum_rows = result.log_sum.unsqueeze(2);
  for (const Block& block : Blocks(shape)) {
    const at::Tensor scores = Scores(QueryRows(q, block, kv_heads), Visible(k, block), block, shape);
    const at::Tensor log_sum = at::logsumexp(scores, 2, /*keepdim=*/true);
    const at::Tensor weights = (scores - log_sum).exp_().to(q.scalar_type());
    PutQueryRows(at::bmm(weights, Visible(v, block)), block, result.out);
    PutQueryRows(log_sum, block, log_sum_rows);
  }
  return result;
}

AttentionGradient AttentionBackward(const at::Tensor& dout, const at::Tensor& q, const at::Tensor& k,
                                    const at::Tensor& v, const Attention& forward, const AttentionShape& shape) {
  const int64_t kv_heads = k.size(1);
  const at::Tensor log_sum_rows = forward.log_sum.unsqueeze(2);
  at::Tensor dq = at::empty(q.sizes(), q.options());
  at::Tensor dk = at::zeros(k.sizes(), k.options().dtype(at::kFloat));
  at::Tensor dv = at::zeros(v.sizes(), v.options().dtype(at::kFloat));
  for (const Block& block : Blocks(shape)) {
    const at::Tensor query = QueryRows(q, block, kv_heads);
    const at::Tensor d_rows = QueryRows(dout, block, kv_heads);
    const at::Tensor scores = Scores(query, Visible(k, block), block, shape);
    const at::Tensor weights = (scores - QueryRows(log_sum_rows, block, kv_heads)).exp_();
    const at::Tensor d_weights = at::bmm(d_rows, Visible(v, block).transpose(1, 2)).to(at::kFloat);
    // From the same products as the weights: a row that sees one token gets exactly no gradient.
    const at::Tensor along = (d_weights * weights).sum(2, /*keepdim=*/true);
    const at::Tensor d_scores = (d_weights - along).mul_(weights).mul_(shape.scale).to(q.scalar_type());
    Visible(dv, block).add_(at::bmm(weights.to(q.scalar_type()).transpose(1, 2), d_rows));
    Visible(dk, block).add_(at::bmm(d_scores.transpose(1, 2), query));
    PutQueryRows(at::bmm(d_scores, Visible(k, block)), block, dq);
  }
  return {dq, dk.to(k.scalar_type()), dv.to(v.scalar_type())};
}

}  // namespace retort
