// How a packed batch is cut for cuDNN: which shapes its graphs are built for, so that few of them serve batches of
// ever-changing lengths, and how many samples and heads go into one launch, so that its scratch memory stays small.
#pragma once

#include <cstdint>
#include <vector>

namespace retort::internal {

// Samples [first, first + count), key heads [kv_first, kv_first + kv_count) and the query heads that share them.
struct AttentionPiece {
  int64_t first = 0, count = 0;
  int64_t kv_first = 0, kv_count = 0;
  bool operator==(const AttentionPiece&) const = default;
};

// What a graph is built for.
struct AttentionGraphShape {
  bool dense = false;  // all samples of one length, no index of where they begin
  int64_t samples = 0, length = 0;
  int64_t tokens = 0;  // at most, all samples together
};

struct AttentionProblem {
  const int64_t* offsets = nullptr;  // [samples + 1]
  int64_t samples = 0;
  int64_t heads = 0, kv_heads = 0, dim = 0;
  bool stores_scores = false;           // the scores' gradient, to make dQ in one product
  int64_t q_stride = 0, kv_stride = 0;  // of a token in dq and in dk and dv, in elements
};

// Whether all samples are of one round length: then they need no index, and a graph of their own is worth its while.
bool IsDense(const int64_t* offsets, int64_t samples);

// The shape for samples [first, first + count), unless dense rounded up: a new shape costs a second of compiling (the
// kernels are not made for changing ones), empty samples and rows next to nothing.
AttentionGraphShape ShapeOf(const int64_t* offsets, int64_t first, int64_t count, bool dense);

// Which scratch tensors of the backward pass lie packed like the gradients, and not sample by sample at full length.
// Packed ones are as wide as the gradients' rows, so either may be the smaller.
struct AttentionScratch {
  bool packed_q = false, packed_kv = false;
  int64_t bytes = 0;  // estimated, of all of it
};
AttentionScratch ScratchOf(const AttentionProblem& problem, const AttentionGraphShape& shape, int64_t kv_count);

// Runs of samples whose backward scratch is about `preferred` bytes at most; where one sample is already above, runs of
// its key heads. Empty: one head of one sample takes more than `largest`.
std::vector<AttentionPiece> CutBackward(const AttentionProblem& problem, int64_t preferred, int64_t largest);

}  // namespace retort::internal
