#include "model/generation/decoder.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "tests/model/generation/test_models.h"

namespace retort::internal {
namespace {

using Wanted = Segment::Wanted;

std::vector<int32_t> Tokens(int64_t count, int64_t seed) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>((i * 37 + seed * 11 + 3) % 101));
  return tokens;
}

// Logits of every position of one sequence, in passes of `step` tokens.
at::Tensor LogitsOf(Decoder& decoder, const std::vector<int32_t>& tokens, int64_t step, int64_t slot = 0) {
  EXPECT_TRUE(decoder.Reserve(slot, static_cast<int64_t>(tokens.size())).ok());
  std::vector<at::Tensor> parts;
  for (size_t start = 0; start < tokens.size(); start += static_cast<size_t>(step)) {
    const auto part = absl::MakeConstSpan(tokens).subspan(start, static_cast<size_t>(step));
    const auto hidden = decoder.Forward({{slot, static_cast<int64_t>(start), part, Wanted::kAll}});
    EXPECT_TRUE(hidden.ok()) << hidden.status();
    const auto logits = decoder.Logits(*hidden);
    EXPECT_TRUE(logits.ok()) << logits.status();
    parts.push_back(logits->contiguous());
  }
  return at::cat(parts, 0);
}

struct Case {
  std::string name;
  TestModelOptions options;
};

class DecoderTest : public ::testing::TestWithParam<Case> {};

TEST_P(DecoderTest, CpuKernelsAgreeWithAten) {
  const TestModelOptions& options = GetParam().options;
  const auto cpu = CreateCpuDecoder(MakeTestModel(options), c10::ScalarType::Float, 2);
  const auto aten = CreateAtenDecoder(MakeTestModel(options), c10::ScalarType::Float, 2);
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  ASSERT_TRUE(aten.ok()) << aten.status();
  const std::vector<int32_t> tokens = Tokens(70, 1);
  const at::Tensor expected = LogitsOf(**aten, tokens, 200);
  const at::Tensor actual = LogitsOf(**cpu, tokens, 200);
  EXPECT_LT((expected - actual).abs().max().item<float>(), 2e-4F * expected.abs().max().item<float>());
  EXPECT_LT((expected - LogitsOf(**aten, tokens, 1)).abs().max().item<float>(), 2e-4F);
  EXPECT_LT((expected - LogitsOf(**aten, tokens, 40)).abs().max().item<float>(), 2e-4F);
}

TEST_P(DecoderTest, BitsDoNotDependOnPasses) {
  const auto decoder = CreateCpuDecoder(MakeTestModel(GetParam().options), c10::ScalarType::Float, 2);
  ASSERT_TRUE(decoder.ok());
  const std::vector<int32_t> tokens = Tokens(110, 2);
  const at::Tensor whole = LogitsOf(**decoder, tokens, 200);
  for (const int64_t step : {1, 2, 3, 5, 7, 97}) {
    EXPECT_TRUE(at::equal(whole, LogitsOf(**decoder, tokens, step))) << "passes of " << step;
  }
}

TEST_P(DecoderTest, BitsDoNotDependOnTheBatch) {
  const auto decoder = CreateCpuDecoder(MakeTestModel(GetParam().options), c10::ScalarType::Float, 8);
  ASSERT_TRUE(decoder.ok());
  std::vector<std::vector<int32_t>> sequences;
  std::vector<Segment> segments;
  for (int64_t i = 0; i < 8; ++i) {
    sequences.push_back(Tokens(5 + 9 * i, i));
    ASSERT_TRUE((*decoder)->Reserve(i, 100).ok());
  }
  for (int64_t i = 0; i < 8; ++i) segments.push_back({i, 0, sequences[static_cast<size_t>(i)], Wanted::kLast});
  const auto hidden = (*decoder)->Forward(segments);
  ASSERT_TRUE(hidden.ok());
  const auto together = (*decoder)->Logits(*hidden);
  ASSERT_TRUE(together.ok());
  for (int64_t i = 0; i < 8; ++i) {
    const at::Tensor alone = LogitsOf(**decoder, sequences[static_cast<size_t>(i)], 1000);
    EXPECT_TRUE(at::equal(alone[-1], (*together)[i])) << "sequence " << i;
  }
}

TEST_P(DecoderTest, BitsDoNotDependOnThreads) {
  const int threads = at::get_num_threads();
  const std::vector<int32_t> tokens = Tokens(60, 3);
  std::vector<at::Tensor> logits;
  for (const int count : {1, 2, 3}) {
    at::set_num_threads(count);
    const auto decoder = CreateCpuDecoder(MakeTestModel(GetParam().options), c10::ScalarType::Float, 1);
    ASSERT_TRUE(decoder.ok());
    logits.push_back(LogitsOf(**decoder, tokens, 60));
  }
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(logits[0], logits[1]));
  EXPECT_TRUE(at::equal(logits[0], logits[2]));
}

TEST_P(DecoderTest, PortableKernelsAgree) {
  const auto fast = CreateCpuDecoder(MakeTestModel(GetParam().options), c10::ScalarType::Float, 1);
  setenv("RETORT_CPU_KERNELS", "generic", 1);
  const auto portable = CreateCpuDecoder(MakeTestModel(GetParam().options), c10::ScalarType::Float, 1);
  unsetenv("RETORT_CPU_KERNELS");
  ASSERT_TRUE(fast.ok() && portable.ok());
  const std::vector<int32_t> tokens = Tokens(40, 4);
  EXPECT_LT((LogitsOf(**fast, tokens, 40) - LogitsOf(**portable, tokens, 40)).abs().max().item<float>(), 2e-4F);
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  cases.push_back({"odd_head_dim", {}});
  cases.push_back({"tied_no_biases", {.tied = true, .biases = false}});
  cases.push_back({"llama3_rope", {.head_dim = 16, .llama3 = true}});
  cases.push_back({"bf16_weights", {.head_dim = 32, .tied = true, .dtype = c10::ScalarType::BFloat16}});
  cases.push_back(
      {"odd_widths", {.hidden_size = 50, .intermediate_size = 70, .heads = 6, .kv_heads = 1, .head_dim = 10}});
  cases.push_back(
      {"wide",
       {.hidden_size = 640, .intermediate_size = 600, .layers = 1, .heads = 26, .kv_heads = 1, .head_dim = 16}});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Models, DecoderTest, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

TEST(CpuDecoder, TakesF32WeightsThatAreExactlyBf16AsBf16) {
  ModelWeights stored = MakeTestModel({.tied = true, .dtype = c10::ScalarType::BFloat16});
  ModelWeights widened = stored;
  widened.embed_tokens = widened.lm_head = stored.embed_tokens.to(at::kFloat);
  for (LayerWeights& layer : widened.layers) {
    for (at::Tensor* weight : {&layer[kQ].weight, &layer[kK].weight, &layer[kV].weight, &layer[kO].weight,
                               &layer[kGate].weight, &layer[kUp].weight, &layer[kDown].weight})
      *weight = weight->to(at::kFloat);
  }
  const auto a = CreateCpuDecoder(std::move(stored), c10::ScalarType::Float, 1);
  const auto b = CreateCpuDecoder(std::move(widened), c10::ScalarType::Float, 1);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_TRUE(at::equal(LogitsOf(**a, Tokens(30, 5), 30), LogitsOf(**b, Tokens(30, 5), 30)));
}

}  // namespace
}  // namespace retort::internal
