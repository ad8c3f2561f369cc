// Each engine of the training step's attention on a GPU against f64 autograd, and whether it repeats itself bit for
// bit. Needs a GPU, cuDNN and libretort_attention.so (build preset cuda).
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>

#include <optional>

#include "absl/strings/str_cat.h"
#include "model/device.h"
#include "tests/model/attention_cases.h"

namespace retort {
namespace {

using internal::AttentionEngine;
using testing::AttentionCase;
using testing::AttentionInputs;
using testing::AttentionResult;

const char* NameOf(AttentionEngine engine) {
  switch (engine) {
    case AttentionEngine::kCudnn:
      return "cudnn";
    case AttentionEngine::kFlash:
      return "flash";
    case AttentionEngine::kAten:
      return "aten";
    case AttentionEngine::kBest:
      break;
  }
  return "best";
}

class TrainingAttentionGpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto device = ChooseDevice("cuda");
    if (!device.ok()) GTEST_SKIP() << device.status();
    device_ = *device;
    spdlog::set_level(spdlog::level::debug);  // a line for each plan
  }

  // Nothing, and a failed test, where the engine refuses.
  std::optional<AttentionResult> Run(const AttentionInputs& inputs, AttentionEngine forward, AttentionEngine backward,
                                     bool deterministic) const {
    const AttentionCase& of = inputs.attention_case;
    try {
      return testing::RunAttention(inputs,
                                   {.scale = testing::AttentionScale(of),
                                    .window = of.window,
                                    .deterministic = deterministic,
                                    .engine = forward},
                                   backward);
    } catch (const std::exception& error) {
      ADD_FAILURE() << NameOf(forward) << " then " << NameOf(backward) << ": " << error.what();
      return std::nullopt;
    }
  }

  static bool SameBits(const at::Tensor& a, const at::Tensor& b) {
    return at::equal(a.view(at::kShort), b.view(at::kShort));
  }

  c10::Device device_ = c10::Device(c10::kCPU);
};

TEST_F(TrainingAttentionGpuTest, EnginesAsAutograd) {
  constexpr std::pair<AttentionEngine, AttentionEngine> kEngines[] = {
      {AttentionEngine::kCudnn, AttentionEngine::kCudnn}, {AttentionEngine::kFlash, AttentionEngine::kFlash},
      {AttentionEngine::kAten, AttentionEngine::kAten},   {AttentionEngine::kCudnn, AttentionEngine::kFlash},
      {AttentionEngine::kFlash, AttentionEngine::kCudnn}, {AttentionEngine::kAten, AttentionEngine::kCudnn}};
  uint64_t seed = 0;
  for (const AttentionCase& of : testing::LargeAttentionCases()) {
    for (const c10::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
      const AttentionInputs inputs(of, dtype, ++seed);
      const AttentionResult reference = testing::ReferenceAttention(inputs);
      const AttentionInputs on_device = inputs.To(device_);
      for (const auto& [forward, backward] : kEngines) {
        for (const bool deterministic : {true, false}) {
          SCOPED_TRACE(absl::StrCat(of.Text(), ", ", c10::toString(dtype), ", ", NameOf(forward), " then ",
                                    NameOf(backward), deterministic ? ", deterministic" : ""));
          const std::optional<AttentionResult> result = Run(on_device, forward, backward, deterministic);
          if (result.has_value()) testing::ExpectClose(of, *result, reference, 1e-2);
        }
      }
    }
  }
}

// Too large for the reference: batches that are cut into runs of samples and of heads.
TEST_F(TrainingAttentionGpuTest, CutBatchesAsFlash) {
  for (const AttentionCase& of :
       {AttentionCase{{8192, 100, 4096, 1}, 32, 8, 128}, AttentionCase{{4096, 4096, 4096}, 32, 8, 128},
        AttentionCase{{8192}, 24, 8, 128, 1000}}) {
    SCOPED_TRACE(of.Text());
    const AttentionInputs inputs = AttentionInputs(of, at::kBFloat16, 7).To(device_);
    const std::optional<AttentionResult> flash = Run(inputs, AttentionEngine::kFlash, AttentionEngine::kFlash, true);
    const std::optional<AttentionResult> cudnn = Run(inputs, AttentionEngine::kCudnn, AttentionEngine::kCudnn, true);
    if (!flash.has_value() || !cudnn.has_value()) continue;
    const AttentionResult wide = {flash->out.cpu().to(at::kDouble), flash->d_qkv.cpu().to(at::kDouble),
                                  flash->log_sum.cpu().to(at::kDouble)};
    testing::ExpectClose(of, *cudnn, wide, 1e-2);
  }
}

TEST_F(TrainingAttentionGpuTest, DeterministicRunsAreEqualBitForBit) {
  for (const AttentionCase& of :
       {AttentionCase{{2048, 2048}, 32, 8, 128}, AttentionCase{{1, 900, 64, 3000, 129, 5}, 32, 8, 128},
        AttentionCase{{700, 1500, 2}, 16, 16, 64, 256}, AttentionCase{{8192}, 32, 8, 128}}) {
    const AttentionInputs inputs = AttentionInputs(of, at::kBFloat16, 11).To(device_);
    for (const AttentionEngine engine : {AttentionEngine::kCudnn, AttentionEngine::kFlash}) {
      SCOPED_TRACE(absl::StrCat(of.Text(), ", ", NameOf(engine)));
      const std::optional<AttentionResult> first = Run(inputs, engine, engine, true);
      for (int again = 0; again < 4 && first.has_value(); ++again) {
        const std::optional<AttentionResult> other = Run(inputs, engine, engine, true);
        if (!other.has_value()) break;
        EXPECT_TRUE(SameBits(first->out, other->out)) << "out, run " << again;
        EXPECT_TRUE(SameBits(first->d_qkv, other->d_qkv)) << "gradients, run " << again;
      }
    }
  }
}

}  // namespace
}  // namespace retort
