// Which rank does which micro-batch, and the one order in which their gradients are added.
//
// The sum over the micro-batches 0..M-1 of a step is a binary tree over their indices, padded to a power of two with
// absent leaves (x + absent = x, without arithmetic). Ranks hold contiguous ranges, so a rank can add up whole aligned
// subtrees by itself, and whoever puts those together finishes the same tree: its bits do not depend on the number of
// ranks. Floating-point addition is commutative but not associative, so the shape of the tree is all that matters.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "common/check.h"

namespace retort {

struct IndexRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const IndexRange&) const = default;
};

// Part `index` of 0..total-1 cut into `parts` contiguous ranges whose sizes differ by one at most, longer ones first.
IndexRange BalancedRange(int64_t total, int parts, int index);

// The inner node (or leaf, level 0) over leaves [first, first + 2^level); `first` is a multiple of 2^level.
struct Subtree {
  int64_t first = 0;
  int level = 0;
  bool operator==(const Subtree&) const = default;
};

// Level of the root over `leaves` leaves: the least L with 2^L >= leaves.
int RootLevel(int64_t leaves);

// The subtrees that lie in `range` (absent leaves belong to the range that ends at `leaves`) and in no larger such one,
// from left to right. Together the ranges of all ranks tile the tree.
std::vector<Subtree> MaximalSubtrees(IndexRange range, int64_t leaves);

// Adds up nodes that arrive from left to right without a gap. Holds at most one value a level. `add(left, right)` makes
// left the sum.
template <typename Value, typename Add>
class TreeFold {
 public:
  struct Node {
    Subtree subtree;
    Value value;
  };

  TreeFold(int64_t leaves, Add add) : leaves_(leaves), root_level_(RootLevel(leaves)), add_(std::move(add)) {}

  void Push(Subtree subtree, Value value) {
    RETORT_CHECK(subtree.first < leaves_ && subtree.level <= root_level_);
    if (!nodes_.empty()) {
      RETORT_CHECK(nodes_.back().subtree.first + (int64_t{1} << nodes_.back().subtree.level) == subtree.first);
    }
    nodes_.push_back({subtree, std::move(value)});
    Settle();
  }

  // What is left: the maximal subtrees of what was pushed.
  std::vector<Node> Take() { return std::exchange(nodes_, {}); }

 private:
  // Replaces the last node by its parent as long as the other child is there, or is absent.
  void Settle() {
    while (nodes_.back().subtree.level < root_level_) {
      Node& top = nodes_.back();
      const int64_t width = int64_t{1} << top.subtree.level;
      if (top.subtree.first % (2 * width) == 0) {
        if (top.subtree.first + width < leaves_) return;
        ++top.subtree.level;
        continue;
      }
      if (nodes_.size() < 2) return;
      Node& left = nodes_[nodes_.size() - 2];
      if (left.subtree.level != top.subtree.level) return;
      add_(left.value, top.value);
      ++left.subtree.level;
      nodes_.pop_back();
    }
  }

  const int64_t leaves_;
  const int root_level_;
  Add add_;
  std::vector<Node> nodes_;
};

// The tree's sum of all leaves. Empty: 0.
double TreeSum(const std::vector<double>& leaves);

}  // namespace retort
