#include "model/generation/scoring.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "model/generation/decoder.h"
#include "tests/model/generation/test_models.h"

namespace retort {
namespace {

std::vector<int32_t> Tokens(int64_t count, int64_t seed) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>((i * 53 + seed * 17) % 101));
  return tokens;
}

TEST(Scorer, GivesTheLogSoftmaxOfTheUncachedModel) {
  const TestModelOptions options = {.layers = 1, .head_dim = 16};
  const auto scorer = Scorer::Create(MakeTestModel(options), c10::ScalarType::Float);
  const auto decoder = internal::CreateAtenDecoder(MakeTestModel(options), c10::ScalarType::Float, 1);
  ASSERT_TRUE(scorer.ok() && decoder.ok());
  // One that fills more than a pass, more short ones than there are slots, and the shortest.
  std::vector<std::vector<int32_t>> sequences = {Tokens(900, 1), Tokens(1, 2), {}, Tokens(2, 3)};
  for (int64_t i = 0; i < 70; ++i) sequences.push_back(Tokens(3 + i % 5, i));
  const auto scores = (*scorer)->Score(sequences);
  ASSERT_TRUE(scores.ok()) << scores.status();
  ASSERT_EQ(scores->size(), sequences.size());
  ASSERT_TRUE((*decoder)->Reserve(0, 1000).ok());
  for (size_t i = 0; i < sequences.size(); ++i) {
    ASSERT_EQ((*scores)[i].size(), sequences[i].size());
    if (sequences[i].empty()) continue;
    EXPECT_TRUE(std::isnan((*scores)[i][0]));
    const auto hidden = (*decoder)->Forward({{0, 0, sequences[i], internal::Segment::Wanted::kAll}});
    ASSERT_TRUE(hidden.ok());
    const at::Tensor expected = at::log_softmax((*decoder)->Logits(*hidden)->to(at::kDouble), 1);
    for (size_t t = 1; t < sequences[i].size(); ++t) {
      ASSERT_NEAR((*scores)[i][t], expected[static_cast<int64_t>(t) - 1][sequences[i][t]].item<double>(), 2e-4)
          << "sequence " << i << " token " << t;
    }
  }
}

TEST(Scorer, NamesTheSequenceThatItRefuses) {
  const auto scorer = Scorer::Create(MakeTestModel({.layers = 1, .head_dim = 16}), c10::ScalarType::Float);
  ASSERT_TRUE(scorer.ok());
  EXPECT_EQ(std::string((*scorer)->Score({{1, 2}, {1, 101}}).status().message()),
            "sequence 1: token id 101 is outside the model's vocabulary of 101");
  EXPECT_EQ((*scorer)->Score({Tokens(1025, 1)}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace retort
