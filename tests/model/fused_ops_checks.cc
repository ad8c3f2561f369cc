#include "tests/model/fused_ops_checks.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/model/fused_ops_placed.h"

namespace retort::testing {
namespace {

using at::Tensor;

std::string Name(at::IntArrayRef sizes, c10::ScalarType type, Layout layout) {
  return absl::StrCat("[", absl::StrJoin(sizes, ", "), "] ", c10::toString(type), " offset ", layout.offset,
                      " padding ", layout.padding);
}

// body(sizes, type, layout, name) over all of them, until something fails.
template <typename Body>
void ForEach(const std::vector<std::vector<int64_t>>& all_sizes, const Body& body) {
  for (const std::vector<int64_t>& sizes : all_sizes) {
    for (const c10::ScalarType type : kTypes) {
      for (const Layout& layout : kLayouts) {
        body(sizes, type, layout, Name(sizes, type, layout));
        if (::testing::Test::HasFailure()) return;
      }
    }
  }
}

// A width for each shape that rows are held in, and some that are held in none.
const std::vector<std::vector<int64_t>>& NormSizes() {
  static const auto& sizes = *new std::vector<std::vector<int64_t>>{
      {0, 64},   {1, 1},    {1, 64},    {3, 7},       {5, 65},      {70, 64},   {37, 128},  {4, 72},
      {9, 256},  {3, 500},  {5, 1000},  {5, 1024},    {3, 2048},    {3, 2056},  {2, 4096},  {3, 4097},
      {2, 5120}, {2, 8192}, {2, 16384}, {1, 16392},   {1, 32768},   {2, 40000}, {3, 5, 64}, {4, 3, 128},
      {0, 2, 8}, {1, 1, 8}, {5, 2, 33}, {2, 3, 4096}, {3, 2, 33000}};
  return sizes;
}

constexpr double kEps = 1e-5;

}  // namespace

void SeedFreshly() {
  const char* given = std::getenv("RETORT_TEST_SEED");
  const uint64_t seed = given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device()();
  std::printf("RETORT_TEST_SEED=%llu\n", static_cast<unsigned long long>(seed));
  at::manual_seed(seed);
}

void ExpectNear(const Tensor& actual, const Tensor& expected, const std::string& what, const Tensor& terms) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  if (actual.numel() == 0) return;
  const c10::ScalarType type = actual.scalar_type();
  const double of_norm = type == at::kBFloat16 ? 1e-2 : type == at::kHalf ? 2e-3 : 1e-5;
  const double of_value = type == at::kBFloat16 ? 4e-3 : type == at::kHalf ? 5e-4 : 1e-6;
  const double smallest = type == at::kHalf ? 6e-8 : 0.0;  // half a step between its denormals, and a little
  const Tensor error = (Double(actual) - expected).abs();
  const Tensor size = terms.defined() ? at::maximum(expected.abs(), terms.abs()) : expected.abs();
  const double norm = size.norm().item<double>();
  const double relative = norm == 0.0 ? error.max().item<double>() : error.norm().item<double>() / norm;
  EXPECT_LE(relative, of_norm) << what;  // false for NaN
  const Tensor allowed = expected.abs() * of_value + size.max() * 2e-5 + smallest;
  const Tensor excess = (error - allowed).view({-1});
  const int64_t worst = excess.argmax().item<int64_t>();
  EXPECT_LE(excess[worst].item<double>(), 0.0)
      << what << ": element " << worst << " is " << Double(actual).reshape({-1})[worst].item<double>() << ", not "
      << expected.reshape({-1})[worst].item<double>();
}

void ExpectSameBits(const Tensor& a, const Tensor& b, const std::string& what) {
  const Tensor left = a.detach().cpu().contiguous();
  const Tensor right = b.detach().cpu().contiguous();
  ASSERT_EQ(left.sizes(), right.sizes()) << what;
  ASSERT_EQ(left.scalar_type(), right.scalar_type()) << what;
  if (left.numel() == 0) return;
  EXPECT_EQ(std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()), 0) << what;
}

Tensor PlainRmsNorm(const Tensor& x, const Tensor& weight, double eps) {
  return x / at::sqrt(x.square().mean(-1, /*keepdim=*/true) + eps) * Double(weight);
}

Tensor PlainRotate(const Tensor& x, int64_t heads, const Tensor& cos, const Tensor& sin, bool inverse) {
  const int64_t tokens = x.size(0);
  const int64_t half = cos.size(1);
  const Tensor by_head = Double(x).reshape({tokens, heads, x.size(1) / heads});
  const Tensor a = by_head.narrow(2, 0, half);
  const Tensor b = by_head.narrow(2, half, half);
  const Tensor c = Double(cos).unsqueeze(1);
  const Tensor s = Double(sin).unsqueeze(1) * (inverse ? -1.0 : 1.0);
  const Tensor rest = by_head.narrow(2, 2 * half, by_head.size(2) - 2 * half);
  return at::cat({a * c - b * s, b * c + a * s, rest}, 2).reshape(x.sizes());
}

Tensor PlainSwiGlu(const Tensor& gate_up) {
  const int64_t width = gate_up.size(1) / 2;
  const Tensor gate = gate_up.narrow(1, 0, width);
  return gate / (at::exp(-gate) + 1.0) * gate_up.narrow(1, width, width);
}

Tensor PlainCrossEntropy(const Tensor& logits, const Tensor& targets) {
  return -at::log_softmax(logits, 1).gather(1, targets.cpu().view({-1, 1})).view({-1});
}

void CheckRmsNorm(const FusedSubject& subject) {
  ForEach(NormSizes(), [&](at::IntArrayRef sizes, c10::ScalarType type, Layout layout, const std::string& name) {
    const Tensor values = Random(sizes, type, 2.0);
    const Tensor weights = (Random({sizes.back()}, at::kFloat, 0.3) + 1.0).to(type);
    const Placed x(values, layout, subject.device);
    const Tensor weight = Vector(weights, layout.offset, subject.device);
    Placed y(sizes, type, layout, subject.device);
    subject.ops.RmsNorm(x.view, weight, kEps, y.view);
    ExpectNear(y.view, PlainRmsNorm(Double(values), weights, kEps), name);
    y.ExpectGuardIntact(name);
    Placed again(values, layout, subject.device);
    subject.ops.RmsNorm(again.view, weight, kEps, again.view);
    ExpectSameBits(again.view, y.view, name + ", in place");
  });
}

void CheckRmsNormBackward(const FusedSubject& subject) {
  ForEach(NormSizes(), [&](at::IntArrayRef sizes, c10::ScalarType type, Layout layout, const std::string& name) {
    const Tensor values = Random(sizes, type, 2.0);
    const Tensor weights = (Random({sizes.back()}, at::kFloat, 0.3) + 1.0).to(type);
    const Tensor grads = Random(sizes, type);
    const Tensor residuals = Random(sizes, type);
    const Placed x(values, layout, subject.device);
    const Placed grad(grads, layout, subject.device);
    const Placed residual(residuals, layout, subject.device);
    const Tensor weight = Vector(weights, layout.offset, subject.device);
    const Tensor gradient =
        PlainGradient([&](const Tensor& input) { return PlainRmsNorm(input, weights, kEps); }, values, grads);
    Placed dx(sizes, type, layout, subject.device);
    subject.ops.RmsNormBackward(grad.view, x.view, weight, kEps, Tensor(), dx.view);
    const Tensor wide = Double(values);
    const Tensor terms = Double(grads) * Double(weights) / at::sqrt(wide.square().mean(-1, true) + kEps);
    ExpectNear(dx.view, gradient, name, terms);
    dx.ExpectGuardIntact(name);
    Placed own_grad(grads, layout, subject.device);
    subject.ops.RmsNormBackward(own_grad.view, x.view, weight, kEps, Tensor(), own_grad.view);
    ExpectSameBits(own_grad.view, dx.view, name + ", in the gradient's place");

    dx.view.fill_(kNaN);
    subject.ops.RmsNormBackward(grad.view, x.view, weight, kEps, residual.view, dx.view);
    ExpectNear(dx.view, gradient + Double(residuals), name + ", residual", terms);
    dx.ExpectGuardIntact(name);
    Placed own_residual(residuals, layout, subject.device);
    subject.ops.RmsNormBackward(grad.view, x.view, weight, kEps, own_residual.view, own_residual.view);
    ExpectSameBits(own_residual.view, dx.view, name + ", in the residual's place");
  });
}

void CheckRotate(const FusedSubject& subject) {
  struct Shape {
    int64_t tokens, heads, head_dim, half;
  };
  for (const Shape& shape : {Shape{0, 2, 8, 4},
                             {1, 1, 2, 1},
                             {3, 5, 64, 32},
                             {4, 40, 128, 64},
                             {2, 3, 80, 40},
                             {5, 7, 10, 3},
                             {2, 2, 96, 48},
                             {2, 1, 256, 128},
                             {3, 2, 64, 16},
                             {2, 3, 20, 10},
                             {130, 9, 128, 64},
                             {1, 65, 16, 8},
                             {70, 3, 4, 2},
                             {2, 2, 1024, 512},
                             {3, 2, 6, 0}}) {
    ForEach({{shape.tokens, shape.heads * shape.head_dim}}, [&](at::IntArrayRef sizes, c10::ScalarType type,
                                                                Layout layout, const std::string& name) {
      const Tensor values = Random(sizes, type);
      const Tensor angles = at::rand({shape.tokens, shape.half}) * 6.3;
      const Placed cos(angles.cos(), layout, subject.device);
      const Placed sin(angles.sin(), layout, subject.device);
      const Tensor saved_cos = cos.view.cpu();
      const Tensor saved_sin = sin.view.cpu();
      for (const bool inverse : {false, true}) {
        const std::string what = absl::StrCat(name, ", ", shape.heads, " heads, half ", shape.half, " ", inverse);
        Placed x(values, layout, subject.device);
        subject.ops.Rotate(x.view, shape.heads, cos.view, sin.view, inverse);
        const Tensor expected = PlainRotate(values, shape.heads, saved_cos, saved_sin, inverse);
        ExpectNear(x.view, expected, what);
        x.ExpectGuardIntact(what);
        if (2 * shape.half < shape.head_dim && shape.tokens > 0) {
          const auto rest = [&](const Tensor& t) {
            return t.cpu()
                .contiguous()
                .view({shape.tokens, shape.heads, shape.head_dim})
                .narrow(2, 2 * shape.half, shape.head_dim - 2 * shape.half);
          };
          ExpectSameBits(rest(x.view), rest(values), what + ", what is not rotated");
        }
        Placed again(values, layout, subject.device);
        subject.ops.Rotate(again.view, shape.heads, cos.view, sin.view, inverse);
        ExpectSameBits(again.view, x.view, what);
      }
    });
    if (::testing::Test::HasFailure()) return;
  }
}

namespace {

const std::vector<std::vector<int64_t>>& SwiGluSizes() {
  static const auto& sizes = *new std::vector<std::vector<int64_t>>{
      {0, 8}, {1, 1}, {3, 7}, {2, 64}, {5, 96}, {4, 1000}, {3, 2052}, {3, 4097}, {2, 14336}, {300, 24}, {530000, 1}};
  return sizes;
}

}  // namespace

void CheckSwiGlu(const FusedSubject& subject) {
  ForEach(SwiGluSizes(), [&](at::IntArrayRef sizes, c10::ScalarType type, Layout layout, const std::string& name) {
    const Tensor values = Random({sizes[0], 2 * sizes[1]}, type, 2.0);
    const Placed gate_up(values, layout, subject.device);
    Placed y(sizes, type, layout, subject.device);
    subject.ops.SwiGlu(gate_up.view, y.view);
    ExpectNear(y.view, PlainSwiGlu(Double(values)), name);
    y.ExpectGuardIntact(name);
    Placed again(sizes, type, layout, subject.device);
    subject.ops.SwiGlu(gate_up.view, again.view);
    ExpectSameBits(again.view, y.view, name);
  });
}

void CheckSwiGluBackward(const FusedSubject& subject) {
  ForEach(SwiGluSizes(), [&](at::IntArrayRef sizes, c10::ScalarType type, Layout layout, const std::string& name) {
    const Tensor values = Random({sizes[0], 2 * sizes[1]}, type, 2.0);
    const Tensor grads = Random(sizes, type);
    const Placed grad(grads, layout, subject.device);
    Placed own(values, layout, subject.device);
    Placed y(sizes, type, layout, subject.device);
    subject.ops.SwiGluBackward(grad.view, own.view, y.view);
    const Tensor gradient = PlainGradient(PlainSwiGlu, values, grads);
    // The two halves apart: neither's largest value excuses the other's errors.
    for (const int64_t first : {int64_t{0}, sizes[1]}) {
      ExpectNear(own.view.narrow(1, first, sizes[1]), gradient.narrow(1, first, sizes[1]), name);
    }
    ExpectNear(y.view, PlainSwiGlu(Double(values)), name + ", the value");
    own.ExpectGuardIntact(name);
    y.ExpectGuardIntact(name);
    ExpectSameBits(grad.view, grads, name + ", what is only read");

    Placed again(values, layout, subject.device);
    Placed over_grad(grads, layout, subject.device);
    subject.ops.SwiGluBackward(over_grad.view, again.view, over_grad.view);
    ExpectSameBits(again.view, own.view, name + ", y in the gradient's place");
    ExpectSameBits(over_grad.view, y.view, name + ", y in the gradient's place");
    Placed alone(values, layout, subject.device);
    Tensor none;
    subject.ops.SwiGluBackward(grad.view, alone.view, none);
    ExpectSameBits(alone.view, own.view, name + ", without y");
  });
}

void CheckCrossEntropy(const FusedSubject& subject) {
  const std::vector<std::vector<int64_t>> all_sizes = {{0, 10},    {1, 1},      {1, 2},      {3, 7},     {40, 64},
                                                       {4, 1000},  {3, 4099},   {2, 8192},   {2, 32000}, {2, 50257},
                                                       {1, 65536}, {1, 128256}, {1, 151936}, {1, 262144}};
  ForEach(all_sizes, [&](at::IntArrayRef sizes, c10::ScalarType type, Layout layout, const std::string& name) {
    const int64_t vocabulary = sizes[1];
    const Tensor values = (Random(sizes, at::kFloat, 2.0) + 5.0).to(type);
    Tensor targets = at::randint(vocabulary, {sizes[0]}, at::TensorOptions(at::kLong));
    if (sizes[0] > 1) {
      targets[0] = 0;
      targets[1] = vocabulary - 1;
    }
    const Tensor own_targets = targets.to(subject.device);
    const double scale = type == at::kHalf ? 379.0 : 0.37;  // f16 has few digits below 6e-5
    Placed logits(values, layout, subject.device);
    Tensor losses = at::full({sizes[0]}, kNaN, own_targets.options().dtype(at::kFloat));
    subject.ops.CrossEntropy(logits.view, own_targets, static_cast<float>(scale), /*gradient=*/false, losses);
    const Tensor target_logits = Double(values).gather(1, targets.view({-1, 1})).view({-1});
    ExpectNear(losses, PlainCrossEntropy(Double(values), targets), name + ", loss", target_logits);
    ExpectSameBits(logits.view, values, name + ", logits without gradient");

    Tensor again = at::full_like(losses, kNaN);
    subject.ops.CrossEntropy(logits.view, own_targets, static_cast<float>(scale), /*gradient=*/true, again);
    ExpectSameBits(again, losses, name + ", loss with gradient");
    const Tensor gradient = PlainGradient([&](const Tensor& input) { return PlainCrossEntropy(input, targets); },
                                          values, at::full({sizes[0]}, scale, at::kDouble));
    // Targets apart from the others: their values are of another size.
    const Tensor index = targets.view({-1, 1});
    const Tensor own_gradient = logits.view.cpu();
    const Tensor at_targets = gradient.gather(1, index);
    ExpectNear(own_gradient.gather(1, index), at_targets, name + ", gradient at targets",
               at::full_like(at_targets, scale));
    ExpectNear(own_gradient.scatter(1, index, 0), gradient.scatter(1, index, 0), name + ", gradient beside targets");
    logits.ExpectGuardIntact(name);
    Placed second(values, layout, subject.device);
    subject.ops.CrossEntropy(second.view, own_targets, static_cast<float>(scale), /*gradient=*/true, again);
    ExpectSameBits(second.view, logits.view, name + ", gradient");
  });
}

void CheckCrossEntropyOfNoNumbers(const FusedSubject& subject) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const int64_t vocabulary : {5, 1000, 30001}) {
    for (const c10::ScalarType type : kTypes) {
      const std::string name = absl::StrCat(vocabulary, " ", c10::toString(type));
      const double lowest = type == at::kHalf ? -65504.0 : -3.38e38;
      Tensor values = Random({6, vocabulary}, type);
      values[0][vocabulary / 2] = kNaN;
      values[1].fill_(-kInfinity);
      values[2][vocabulary - 1] = kInfinity;
      values[3].fill_(-kInfinity);
      values[3][1] = 2.0;  // the target alone is left
      values[4].fill_(lowest);
      const Tensor targets = at::ones({6}, at::TensorOptions(at::kLong).device(subject.device));
      Tensor logits = values.clone().to(subject.device);
      Tensor losses = at::zeros({6}, targets.options().dtype(at::kFloat));
      subject.ops.CrossEntropy(logits, targets, 1.0F, /*gradient=*/true, losses);
      losses = losses.cpu();
      EXPECT_TRUE(losses.narrow(0, 0, 3).isnan().all().item<bool>()) << name << losses;
      EXPECT_TRUE(logits.narrow(0, 0, 3).isnan().all().item<bool>()) << name;
      EXPECT_EQ(losses[3].item<float>(), 0.0F) << name;
      EXPECT_NEAR(losses[4].item<double>(), std::log(static_cast<double>(vocabulary)), 1e-4) << name;
      EXPECT_TRUE(logits.narrow(0, 3, 3).isfinite().all().item<bool>()) << name;
      ExpectNear(losses.narrow(0, 5, 1), PlainCrossEntropy(Double(values), targets).narrow(0, 5, 1), name);
    }
  }
}

void CheckWrongArguments(const FusedSubject& subject) {
  const auto options = at::TensorOptions(subject.device);
  const FusedOps& ops = subject.ops;
  Tensor x = at::ones({3, 8}, options);
  Tensor other_width = at::ones({3, 4}, options);
  Tensor other_type = at::ones({3, 8}, options.dtype(at::kHalf));
  Tensor apart = at::ones({8, 3}, options).t();
  const Tensor weight = at::ones({8}, options);
  EXPECT_THROW(ops.RmsNorm(x, weight, kEps, other_width), c10::Error);
  EXPECT_THROW(ops.RmsNorm(x, weight, kEps, other_type), c10::Error);
  EXPECT_THROW(ops.RmsNorm(apart, weight, kEps, x), c10::Error);
  EXPECT_THROW(ops.RmsNorm(x, weight.narrow(0, 0, 7), kEps, x), c10::Error);
  EXPECT_THROW(ops.RmsNormBackward(other_width, x, weight, kEps, Tensor(), x), c10::Error);
  EXPECT_THROW(ops.RmsNormBackward(x, x, weight, kEps, other_width, x), c10::Error);
  const Tensor angles = at::ones({3, 2}, options);
  EXPECT_THROW(ops.Rotate(x, 3, angles, angles, false), c10::Error);
  EXPECT_THROW(ops.Rotate(x, 4, angles, angles, false), c10::Error);
  EXPECT_THROW(ops.Rotate(x, 2, angles.narrow(0, 0, 2), angles.narrow(0, 0, 2), false), c10::Error);
  EXPECT_THROW(ops.SwiGlu(x, x), c10::Error);
  EXPECT_THROW(ops.SwiGluBackward(other_width, x, x), c10::Error);
  Tensor losses = at::ones({3}, options);
  const Tensor targets = at::ones({3}, options.dtype(at::kLong));
  EXPECT_THROW(ops.CrossEntropy(x, targets.narrow(0, 0, 2), 1.0F, true, losses), c10::Error);
  EXPECT_THROW(ops.CrossEntropy(x, targets.to(at::kInt), 1.0F, true, losses), c10::Error);
  Tensor flat = at::ones({8}, options);
  Tensor short_flat = at::ones({7}, options);
  const Tensor square_sum = at::ones({1}, options.dtype(at::kDouble));
  EXPECT_THROW(ops.SquareSum(flat, flat), c10::Error);
  EXPECT_THROW(ops.AdamW({}, square_sum, 1.0, {}, flat, flat, flat, short_flat), c10::Error);
  EXPECT_THROW(ops.AdamW({}, square_sum, 1.0, {{0, 9}}, flat, flat, flat, flat), c10::Error);
  EXPECT_THROW(ops.AdamW({}, square_sum, 1.0, {{3, 5}, {4, 6}}, flat, flat, flat, flat), c10::Error);
  EXPECT_THROW(ops.AdamW({}, Tensor(), 1.0, {}, flat, flat, flat, flat), c10::Error);
  FlatBlock block{.offset = 0, .rows = 8, .columns = 3};
  block.matrix = x;
  EXPECT_THROW(ops.MakeFlatBlocks({block}), c10::Error);
}

}  // namespace retort::testing
