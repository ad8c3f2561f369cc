// The plug-in's kernels for quantised matrices against the CPU code, bit for bit, and how near they come to the
// memory's speed. Needs a GPU and libretort_quant.so (build preset cuda).
#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>

#include "absl/strings/str_cat.h"
#include "model/device.h"
#include "model/quantized/gpu.h"
#include "model/quantized/quantise.h"

namespace retort {
namespace {

constexpr c10::ScalarType kDtypes[] = {at::kFloat, at::kBFloat16, at::kHalf};

class QuantizedGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto device = ChooseDevice("cuda");
    if (!device.ok()) GTEST_SKIP() << device.status();
    device_ = *device;
    QuantizedMatrix probe{.type = QuantType::kInt8, .rows = 1, .columns = 1};
    probe.codes = at::zeros({1, 1}, at::TensorOptions(device_).dtype(at::kChar));
    probe.scales = at::zeros({1}, at::TensorOptions(device_).dtype(at::kFloat));
    at::Tensor out = at::empty({1, 1}, at::TensorOptions(device_));
    ASSERT_TRUE(DequantiseOnGpu(probe, out)) << "libretort_quant.so is not beside the program";
  }

  void Synchronize() const {
    const c10::impl::VirtualGuardImpl guard(device_.type());
    guard.synchronizeDevice(device_.index());
  }

  // Normal values with what is hard among them: zeros, a block of nothing else, magnitudes far apart.
  static at::Tensor Hard(int64_t rows, int64_t columns, c10::ScalarType dtype, uint64_t seed) {
    at::manual_seed(seed);
    at::Tensor values = at::randn({rows, columns});
    at::Tensor flat = values.view({-1});
    flat.narrow(0, 0, std::min<int64_t>(flat.numel(), 70)).zero_();
    if (flat.numel() > 400) {
      flat[130] = 1e-30F;
      flat[200] = 900.0F;
      flat[300] = -1e-7F;
    }
    return values.to(dtype);
  }

  static void ExpectSame(const at::Tensor& gpu, const at::Tensor& cpu, const std::string& what) {
    const at::Tensor own = gpu.cpu();
    ASSERT_EQ(own.scalar_type(), cpu.scalar_type()) << what;
    ASSERT_EQ(own.sizes(), cpu.sizes()) << what;
    EXPECT_EQ(std::memcmp(own.const_data_ptr(), cpu.contiguous().const_data_ptr(), cpu.nbytes()), 0) << what;
  }

  // GB/s of `bytes` moved by `body`, the best of several rounds.
  double Speed(double bytes, const std::function<void()>& body) const {
    double best = 0.0;
    for (int round = 0; round < 8; ++round) {
      Synchronize();
      const auto begin = std::chrono::steady_clock::now();
      for (int i = 0; i < 20; ++i) body();
      Synchronize();
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
      best = std::max(best, 20.0 * bytes / taken.count() / 1e9);
    }
    return best;
  }

  c10::Device device_ = c10::Device(c10::kCPU);
};

struct Size {
  int64_t rows, columns;
};
constexpr Size kSizes[] = {{1, 1},   {1, 2},    {1, 63},    {1, 64},     {1, 65},   {3, 21},     {7, 19},
                           {5, 128}, {16, 40},  {33, 257},  {64, 4096},  {127, 96}, {260, 67},   {1, 100000},
                           {8, 8},   {100, 24}, {1024, 72}, {511, 1023}, {2, 8191}, {3000, 1000}};

TEST_F(QuantizedGpuTest, FourBitsAsTheCpu) {
  uint64_t seed = 1;
  for (const Size& size : kSizes) {
    for (const c10::ScalarType dtype : kDtypes) {
      for (const QuantType type : {QuantType::kNf4, QuantType::kFp4}) {
        for (const int64_t block : {32, 64, 128, 256, 512, 4096, 48, 50}) {
          const QuantiseOptions options{.type = type, .double_quant = block != 48, .block = block};
          const at::Tensor values = Hard(size.rows, size.columns, dtype, ++seed);
          const std::string what = absl::StrCat(QuantTypeName(type), " ", size.rows, " x ", size.columns, " ",
                                                c10::toString(dtype), " block ", block);
          const QuantizedMatrix cpu = Quantise(values, options).value();
          const QuantizedMatrix gpu = Quantise(values.to(device_), options).value();
          ASSERT_TRUE(gpu.codes.is_cuda());
          ExpectSame(gpu.codes, cpu.codes, what + ": codes");
          ExpectSame(gpu.scales, cpu.scales, what + ": scales");
          if (options.double_quant) ExpectSame(gpu.nested.scales, cpu.nested.scales, what + ": nested scales");
          const QuantizedMatrix moved = ToDevice(cpu, device_);
          for (const c10::ScalarType wide : kDtypes) {
            ExpectSame(Dequantise(moved, wide), Dequantise(cpu, wide), what + ": values");
          }
          if (HasFailure()) return;
        }
      }
    }
  }
}

TEST_F(QuantizedGpuTest, Int8AsTheCpu) {
  uint64_t seed = 1000;
  for (const Size& size : kSizes) {
    for (const c10::ScalarType dtype : kDtypes) {
      const at::Tensor values = Hard(size.rows, size.columns, dtype, ++seed);
      const std::string what = absl::StrCat(size.rows, " x ", size.columns, " ", c10::toString(dtype));
      const QuantizedMatrix cpu = Quantise(values, {.type = QuantType::kInt8}).value();
      const QuantizedMatrix gpu = Quantise(values.to(device_), {.type = QuantType::kInt8}).value();
      ExpectSame(gpu.codes, cpu.codes, what + ": codes");
      ExpectSame(gpu.scales, cpu.scales, what + ": scales");
      for (const c10::ScalarType wide : kDtypes) {
        ExpectSame(Dequantise(gpu, wide), Dequantise(cpu, wide), what + ": values");
      }
      if (HasFailure()) return;
    }
  }
}

TEST_F(QuantizedGpuTest, WhatIsNotFiniteIsRefused) {
  for (const int64_t block : {64, 50}) {
    at::Tensor values = at::ones({64, 64});
    values[40][3] = std::nanf("");
    EXPECT_FALSE(Quantise(values.to(device_), {.block = block}).ok());
    values[40][3] = INFINITY;
    EXPECT_FALSE(Quantise(values.to(device_), {.block = block}).ok());
  }
}

TEST_F(QuantizedGpuTest, Speed) {
  constexpr int64_t kRows = 14336;
  constexpr int64_t kColumns = 4096;
  const double count = static_cast<double>(kRows) * kColumns;
  const at::Tensor values = at::randn({kRows, kColumns}, at::TensorOptions(device_)).to(at::kBFloat16);
  const QuantizedMatrix nf4 = Quantise(values, {}).value();
  const QuantizedMatrix int8 = Quantise(values, {.type = QuantType::kInt8}).value();
  const auto tell = [](const char* what, double speed) {
    std::printf("{\"kernel\": \"%s\", \"GB_per_s\": %.0f}\n", what, speed);
  };
  at::Tensor wide = at::empty_like(values);
  const double copy = Speed(4.0 * count, [&] { wide.copy_(values); });
  tell("copy_bf16", copy);
  const double from_nf4 = Speed(2.5 * count, [&] { DequantiseOnGpu(nf4, wide); });
  tell("dequantise_nf4_double_quant_bf16", from_nf4);
  const double from_int8 = Speed(3.0 * count, [&] { DequantiseOnGpu(int8, wide); });
  tell("dequantise_int8_bf16", from_int8);
  at::Tensor single = at::empty(values.sizes(), values.options().dtype(at::kFloat));
  tell("dequantise_nf4_double_quant_f32", Speed(4.5 * count, [&] { DequantiseOnGpu(nf4, single); }));
  at::Tensor codes = at::empty_like(nf4.codes);
  at::Tensor scales = at::empty({nf4.blocks()}, values.options().dtype(at::kFloat));
  tell("quantise_nf4_bf16", Speed(2.5 * count, [&] { Quantise4BitOnGpu(values, {}, codes, scales); }));
  const at::Tensor half = values.to(at::kHalf);
  at::Tensor bytes = at::empty_like(int8.codes);
  at::Tensor row_scales = at::empty_like(int8.scales);
  tell("quantise_int8_f16", Speed(3.0 * count, [&] { QuantiseRowsOnGpu(half, bytes, row_scales); }));
  EXPECT_GT(from_nf4, 0.6 * copy);
  EXPECT_GT(from_int8, 0.6 * copy);
}

}  // namespace
}  // namespace retort
