// The checks of what works on an optimizer's flat buffers.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/model/fused_ops_checks.h"
#include "tests/model/fused_ops_placed.h"

namespace retort::testing {

using at::Tensor;

void CheckSquareSum(const FusedSubject& subject) {
  for (const int64_t count : {0, 1, 2, 3, 4, 5, 1000, 1023, 65537, 1048579, 5000002}) {
    const Tensor values = Random({count}, at::kFloat, 3.0);
    const double expected = values.to(at::kDouble).square().sum().item<double>();
    Tensor out = at::full({1}, kNaN, at::TensorOptions(subject.device).dtype(at::kDouble));
    subject.ops.SquareSum(Vector(values, 0, subject.device), out);
    EXPECT_NEAR(out.item<double>(), expected, 1e-12 * expected) << count;
    for (const int64_t offset : {0, 1, 2, 4}) {
      Tensor again = at::full_like(out, kNaN);
      subject.ops.SquareSum(Vector(values, offset, subject.device), again);
      ExpectSameBits(again, out, absl::StrCat(count, " from ", offset));
    }
  }
}

namespace {

using Ranges = std::vector<std::pair<int64_t, int64_t>>;

Ranges RandomRanges(int64_t numel, int64_t count) {
  std::set<int64_t> bounds;
  const Tensor drawn = at::randint(numel + 1, {2 * count}, at::TensorOptions(at::kLong));
  for (int64_t i = 0; i < drawn.numel(); ++i) bounds.insert(drawn[i].item<int64_t>());
  Ranges ranges;
  for (auto bound = bounds.begin(); bound != bounds.end() && std::next(bound) != bounds.end();) {
    const int64_t first = *bound++;
    ranges.emplace_back(first, *bound++);
  }
  return ranges;
}

// T = float: operation by operation as the CPU's optimizer does it; T = double: what it stands for.
template <typename T>
void PlainAdamW(const FusedAdamW& s, T clip, const Ranges& undecayed, const Tensor& gradient, Tensor& parameters,
                Tensor& exp_avg, Tensor& exp_avg_sq) {
  const auto decay = static_cast<T>(1 - s.learning_rate * s.weight_decay);
  const auto one_minus_beta1 = static_cast<T>(1 - s.beta1);
  const auto beta2 = static_cast<T>(s.beta2);
  const auto one_minus_beta2 = static_cast<T>(1 - s.beta2);
  const auto correction = static_cast<T>(s.bias_correction2_sqrt);
  const auto epsilon = static_cast<T>(s.epsilon);
  const auto negative_step = static_cast<T>(-(s.learning_rate / s.bias_correction1));
  const T* gradients = gradient.const_data_ptr<T>();
  T* p = parameters.mutable_data_ptr<T>();
  T* m = exp_avg.mutable_data_ptr<T>();
  T* v = exp_avg_sq.mutable_data_ptr<T>();
  auto range = undecayed.begin();
  for (int64_t i = 0; i < parameters.numel(); ++i) {
    while (range != undecayed.end() && range->second <= i) ++range;
    const bool decays = range == undecayed.end() || i < range->first;
    const T g = clip < 1 ? gradients[i] * clip : gradients[i];
    const T kept = decays ? p[i] * decay : p[i];
    m[i] = m[i] + one_minus_beta1 * (g - m[i]);
    v[i] = v[i] * beta2 + one_minus_beta2 * g * g;
    p[i] = kept + negative_step * m[i] / (std::sqrt(v[i]) / correction + epsilon);
  }
}

struct AdamWCase {
  int64_t numel;
  Ranges undecayed;
  double max_norm;
  int64_t offset;
};

void CheckAdamWCase(const FusedSubject& subject, const AdamWCase& c) {
  const std::string name =
      absl::StrCat(c.numel, " elements from ", c.offset, ", ", c.undecayed.size(), " ranges, max norm ", c.max_norm);
  const FusedAdamW step = {.learning_rate = 3e-4,
                           .beta1 = 0.9,
                           .beta2 = 0.999,
                           .epsilon = 1e-8,
                           .weight_decay = 0.1,
                           .bias_correction1 = 1 - std::pow(0.9, 3),
                           .bias_correction2_sqrt = std::sqrt(1 - std::pow(0.999, 3))};
  Tensor single[4] = {Random({c.numel}, at::kFloat), Random({c.numel}, at::kFloat), Random({c.numel}, at::kFloat, 0.1),
                      Random({c.numel}, at::kFloat, 0.1).square()};
  Tensor own[4];
  Tensor again[4];
  Tensor wide[4];
  for (int i = 0; i < 4; ++i) {
    own[i] = Vector(single[i], c.offset, subject.device);
    again[i] = Vector(single[i], c.offset, subject.device);
    wide[i] = single[i].to(at::kDouble);
  }
  const Tensor square_sum = wide[0].square().sum().view({1}).to(subject.device);
  const double norm = std::sqrt(square_sum.item<double>());
  const double clip = c.max_norm > 0 ? std::min(1.0, c.max_norm / (norm + 1e-6)) : 1.0;
  subject.ops.AdamW(step, square_sum, c.max_norm, c.undecayed, own[0], own[1], own[2], own[3]);
  subject.ops.AdamW(step, square_sum, c.max_norm, c.undecayed, again[0], again[1], again[2], again[3]);
  PlainAdamW<float>(step, static_cast<float>(clip), c.undecayed, single[0], single[1], single[2], single[3]);
  PlainAdamW<double>(step, clip, c.undecayed, wide[0], wide[1], wide[2], wide[3]);
  const char* const names[] = {", gradient", ", parameters", ", exp_avg", ", exp_avg_sq"};
  for (int i = 0; i < 4; ++i) {
    ExpectSameBits(own[i], single[i], name + names[i]);
    ExpectSameBits(again[i], own[i], name + names[i] + ", again");
    ExpectNear(own[i], wide[i], name + names[i]);
  }
}

}  // namespace

void CheckAdamW(const FusedSubject& subject) {
  std::vector<AdamWCase> cases = {{0, {}, 1.0, 0},
                                  {1, {}, 1.0, 0},
                                  {5, {{0, 5}}, 0.0, 0},
                                  {7, {{1, 1}, {2, 3}, {3, 4}, {6, 7}}, 1e9, 0},
                                  {100000, RandomRanges(100000, 3000), 1.0, 0},
                                  {100003, RandomRanges(100003, 3000), 1.0, 1},
                                  {1200003, RandomRanges(1200003, 20), 0.5, 0}};
  // Ranges of one element, none, one and four apart, over the bounds of launches.
  for (const int64_t stride : {2, 3, 5}) {
    Ranges ranges;
    for (int64_t i = stride - 1; i < 4001; i += stride) ranges.emplace_back(i, i + 1);
    cases.push_back({4001, ranges, 1.0, 0});
    cases.push_back({4001, ranges, 1.0, 3});
  }
  for (const int64_t offset : {0, 1}) {
    cases.push_back({1003, {}, 0.0, offset});
    cases.push_back({1003, {}, 1e9, offset});
    cases.push_back({1003, {{0, 1003}}, 1.0, offset});
    cases.push_back({1500001, {}, 1.0, offset});
  }
  for (const AdamWCase& c : cases) {
    CheckAdamWCase(subject, c);
    if (::testing::Test::HasFailure()) return;
  }
  // A norm that is no number clips nothing, and the gradient carries it on.
  Tensor buffers[4];
  for (Tensor& buffer : buffers) buffer = at::ones({6}, at::TensorOptions(subject.device));
  const Tensor square_sum = at::full({1}, kNaN, at::TensorOptions(subject.device).dtype(at::kDouble));
  subject.ops.AdamW({.learning_rate = 0.1}, square_sum, 1.0, {}, buffers[0], buffers[1], buffers[2], buffers[3]);
  EXPECT_TRUE(buffers[1].isfinite().all().item<bool>());
}

void CheckFlatBlocks(const FusedSubject& subject) {
  struct Shape {
    int64_t rows, columns;
  };
  std::vector<FlatBlock> blocks;
  std::vector<Placed> matrices;
  int64_t end = 3;  // the first block does not begin where the buffer does
  for (const Shape& shape : {Shape{16, 4096},
                             {4096, 16},
                             {1, 1},
                             {3, 5},
                             {0, 7},
                             {64, 64},
                             {70, 130},
                             {8, 1000},
                             {257, 33},
                             {128, 256},
                             {16, 1437},
                             {1000, 1},
                             {1, 5000},
                             {300, 300},
                             {31, 64}}) {
    for (const bool transposed : {false, true}) {
      for (const c10::ScalarType type : kTypes) {
        const Layout layout = kLayouts[at::randint(4, {1}).item<int64_t>()];
        const int64_t rows = transposed ? shape.columns : shape.rows;
        const int64_t columns = transposed ? shape.rows : shape.columns;
        matrices.emplace_back(std::vector<int64_t>{rows, columns}, type, layout, subject.device);
        FlatBlock block{.offset = end, .rows = shape.rows, .columns = shape.columns};
        block.matrix = matrices.back().view;
        block.transposed = transposed;
        block.scale = at::rand({1}).item<float>() < 0.3F ? 1.0F : 0.7F;
        blocks.push_back(block);
        end += shape.rows * shape.columns + at::randint(2, {1}).item<int64_t>() * 5;
        end += at::rand({1}).item<float>() < 0.5F ? (-end & 3) : 0;  // half of them at multiples of 16 bytes
      }
    }
  }
  const auto writer = subject.ops.MakeFlatBlocks(blocks);
  for (int round = 0; round < 2; ++round) {
    const Tensor values = Random({end + 2}, at::kFloat);
    writer->Write(values.to(subject.device));
    for (size_t i = 0; i < blocks.size(); ++i) {
      const FlatBlock& block = blocks[i];
      const std::string name = absl::StrCat("[", block.rows, ", ", block.columns, "] at ", block.offset, " ",
                                            c10::toString(block.matrix.scalar_type()), " ", block.transposed);
      Tensor expected = values.narrow(0, block.offset, block.rows * block.columns) * block.scale;
      expected = expected.view({block.rows, block.columns});
      if (block.transposed) expected = expected.t();
      ExpectSameBits(block.matrix, expected.to(block.matrix.scalar_type()), name);
      matrices[i].ExpectGuardIntact(name);
    }
    if (::testing::Test::HasFailure()) return;
  }
  subject.ops.MakeFlatBlocks({})->Write(at::empty({0}, at::TensorOptions(subject.device)));
  EXPECT_THROW(writer->Write(at::zeros({end - 100}, at::TensorOptions(subject.device))), c10::Error);
}

}  // namespace retort::testing
