#include "model/comm/reduction_plan.h"

#include <algorithm>

namespace retort {

IndexRange BalancedRange(int64_t total, int parts, int index) {
  RETORT_CHECK(total >= 0 && parts > 0 && index >= 0 && index < parts);
  const int64_t base = total / parts;
  const int64_t longer = total % parts;
  const int64_t begin = index * base + std::min<int64_t>(index, longer);
  return {begin, begin + base + (index < longer ? 1 : 0)};
}

int RootLevel(int64_t leaves) {
  RETORT_CHECK(leaves >= 0 && leaves <= (int64_t{1} << 40));
  int level = 0;
  while ((int64_t{1} << level) < leaves) ++level;
  return level;
}

std::vector<Subtree> MaximalSubtrees(IndexRange range, int64_t leaves) {
  RETORT_CHECK(range.begin >= 0 && range.begin <= range.end && range.end <= leaves);
  std::vector<Subtree> subtrees;
  const int root = RootLevel(leaves);
  const int64_t end = range.end == leaves ? int64_t{1} << root : range.end;
  for (int64_t first = range.begin; first < std::min(end, leaves);) {
    int level = 0;
    while (level < root && first % (int64_t{2} << level) == 0 && first + (int64_t{2} << level) <= end) ++level;
    subtrees.push_back({first, level});
    first += int64_t{1} << level;
  }
  return subtrees;
}

double TreeSum(const std::vector<double>& leaves) {
  if (leaves.empty()) return 0.0;
  auto add = [](double& left, double right) { left += right; };
  TreeFold<double, decltype(add)> fold(static_cast<int64_t>(leaves.size()), add);
  for (size_t i = 0; i < leaves.size(); ++i) fold.Push({static_cast<int64_t>(i), 0}, leaves[i]);
  auto nodes = fold.Take();
  RETORT_CHECK(nodes.size() == 1);
  return nodes.front().value;
}

}  // namespace retort
