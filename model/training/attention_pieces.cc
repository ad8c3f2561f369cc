#include "model/training/attention_pieces.h"

#include <algorithm>

namespace retort::internal {
namespace {

constexpr int64_t kTile = 128;  // rows and columns of scores that a thread block holds
constexpr int64_t kLengthUnit = 512;

int64_t Multiple(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// The smallest of unit x {1, 2, 4, 8, ...} that holds n.
int64_t PowerBucket(int64_t n, int64_t unit) {
  int64_t power = unit;
  while (power < n) power *= 2;
  return power;
}

// The smallest of unit x {1, 2, 3, 4, 6, 8, 12, 16, ...} that holds n.
int64_t Bucket(int64_t n, int64_t unit) {
  const int64_t power = PowerBucket(n, unit);
  const int64_t below = power / 4 * 3;
  return below >= n && below % unit == 0 ? below : power;
}

int64_t Longest(const int64_t* offsets, int64_t first, int64_t count) {
  int64_t longest = 0;
  for (int64_t i = first; i < first + count; ++i) longest = std::max(longest, offsets[i + 1] - offsets[i]);
  return longest;
}

}  // namespace

bool IsDense(const int64_t* offsets, int64_t samples) {
  const int64_t length = samples > 0 ? offsets[1] - offsets[0] : 0;
  if (length == 0 || length % kLengthUnit != 0) return false;
  for (int64_t i = 0; i < samples; ++i) {
    if (offsets[i + 1] - offsets[i] != length) return false;
  }
  return true;
}

AttentionGraphShape ShapeOf(const int64_t* offsets, int64_t first, int64_t count, bool dense) {
  constexpr int64_t kTokens = 4096;
  const int64_t longest = Longest(offsets, first, count);
  if (dense) return {.dense = true, .samples = count, .length = longest, .tokens = count * longest};
  return {.dense = false,
          .samples = PowerBucket(count, 1),
          .length = Bucket(longest, kLengthUnit),
          .tokens = PowerBucket(offsets[first + count] - offsets[first], kTokens)};
}

AttentionScratch ScratchOf(const AttentionProblem& problem, const AttentionGraphShape& shape, int64_t kv_count) {
  const int64_t group = problem.heads / problem.kv_heads;
  const int64_t heads = kv_count * group;
  const int64_t rows = shape.samples * shape.length * heads;
  // cuDNN's packed scratch has a fault for other widths, and its front end then ignores the wish.
  const bool may_pack = !shape.dense && problem.dim % 16 == 0;
  AttentionScratch scratch;
  // dQ is added up in f32.
  const int64_t padded_q = rows * problem.dim * 4;
  const int64_t packed_q = shape.tokens * problem.q_stride * 4;
  scratch.packed_q = may_pack && packed_q < padded_q;
  // dK and dV of each query head, to be added up over those that share a key head. Packed they are f32 in size.
  const int64_t padded_kv = rows * problem.dim * 2;
  const int64_t packed_kv = shape.tokens * problem.kv_stride * group * 4;
  scratch.packed_kv = may_pack && packed_kv < padded_kv;
  scratch.bytes = rows * 4;  // of a row: the product of out and its gradient
  if (group > 1) scratch.bytes += 2 * (scratch.packed_kv ? packed_kv : padded_kv);
  scratch.bytes += problem.stores_scores
                       ? shape.samples * heads * Multiple(shape.length, kTile) * Multiple(shape.length, kTile) * 2
                       : (scratch.packed_q ? packed_q : padded_q);
  return scratch;
}

std::vector<AttentionPiece> CutBackward(const AttentionProblem& problem, int64_t preferred, int64_t largest) {
  const bool dense = IsDense(problem.offsets, problem.samples);
  const auto bytes = [&](int64_t first, int64_t count, int64_t kv_count) {
    return ScratchOf(problem, ShapeOf(problem.offsets, first, count, dense), kv_count).bytes;
  };
  std::vector<AttentionPiece> pieces;
  for (int64_t first = 0; first < problem.samples;) {
    if (bytes(first, 1, problem.kv_heads) > preferred) {
      if (bytes(first, 1, 1) > largest) return {};
      int64_t kv_count = problem.kv_heads;
      while (kv_count > 1 && (problem.kv_heads % kv_count != 0 || bytes(first, 1, kv_count) > preferred)) --kv_count;
      for (int64_t kv_first = 0; kv_first < problem.kv_heads; kv_first += kv_count) {
        pieces.push_back({first, 1, kv_first, kv_count});
      }
      ++first;
      continue;
    }
    int64_t count = 1;
    while (first + count < problem.samples && bytes(first, count + 1, problem.kv_heads) <= preferred) ++count;
    pieces.push_back({first, count, 0, problem.kv_heads});
    first += count;
  }
  return pieces;
}

}  // namespace retort::internal
