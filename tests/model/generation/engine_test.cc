#include "model/generation/engine.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/generation/decoder.h"
#include "tests/model/generation/test_models.h"

namespace retort {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

std::unique_ptr<GenerationEngine> MakeEngine(int64_t max_batch_size, int64_t max_sequence_length = 0) {
  auto engine = GenerationEngine::Create(MakeTestModel({.head_dim = 16}), c10::ScalarType::Float,
                                         {max_batch_size, max_sequence_length});
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

GenerationRequest Request(uint64_t id, int64_t prompt_tokens, double temperature = 0.0, int64_t max_tokens = 20) {
  GenerationRequest request;
  request.id = id;
  for (int64_t i = 0; i < prompt_tokens; ++i)
    request.prompt.push_back(static_cast<int32_t>((i * 31 + static_cast<int64_t>(id) * 7 + 2) % 101));
  request.sampling.temperature = temperature;
  request.sampling.top_p = 0.95;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  request.random_key = 1000 + id;
  return request;
}

std::map<uint64_t, GenerationResult> Finish(GenerationEngine& engine) {
  std::map<uint64_t, GenerationResult> results;
  while (engine.active() > 0) {
    auto ended = engine.Step();
    EXPECT_TRUE(ended.ok()) << ended.status();
    for (auto& result : *ended) results[result.id] = std::move(result);
  }
  return results;
}

GenerationResult RunAlone(GenerationRequest request) {
  const auto engine = MakeEngine(1);
  EXPECT_TRUE(engine->Add(std::move(request)).ok());
  auto results = Finish(*engine);
  EXPECT_THAT(results, SizeIs(1));
  return results.begin()->second;
}

TEST(GenerationEngine, GreedyTakesTheLargestLogitOfTheUncachedModel) {
  const auto decoder = internal::CreateAtenDecoder(MakeTestModel({.head_dim = 16}), c10::ScalarType::Float, 1);
  ASSERT_TRUE(decoder.ok());
  const GenerationRequest request = Request(1, 9);
  std::vector<int32_t> tokens = request.prompt;
  ASSERT_TRUE((*decoder)->Reserve(0, 100).ok());
  for (int64_t i = 0; i < request.sampling.max_tokens; ++i) {
    const auto hidden = (*decoder)->Forward({{0, 0, tokens, internal::Segment::Wanted::kLast}});
    ASSERT_TRUE(hidden.ok());
    const auto logits = (*decoder)->Logits(*hidden);
    ASSERT_TRUE(logits.ok());
    tokens.push_back(static_cast<int32_t>(logits->argmax(-1).item<int64_t>()));
  }
  const GenerationResult result = RunAlone(request);
  EXPECT_EQ(result.token_ids,
            std::vector<int32_t>(tokens.begin() + static_cast<int64_t>(request.prompt.size()), tokens.end()));
  EXPECT_EQ(result.finish_reason, "length");
}

TEST(GenerationEngine, SequencesAreTheSameAloneAndInABusyBatch) {
  const auto engine = MakeEngine(3);
  std::map<uint64_t, GenerationResult> results;
  const auto step = [&] {
    auto ended = engine->Step();
    ASSERT_TRUE(ended.ok()) << ended.status();
    for (auto& result : *ended) results[result.id] = std::move(result);
  };
  for (uint64_t id = 1; id <= 4; ++id)
    ASSERT_TRUE(
        engine->Add(Request(id, 3 + 11 * static_cast<int64_t>(id), 0.8, 5 + 4 * static_cast<int64_t>(id))).ok());
  for (int i = 0; i < 6; ++i) step();
  for (uint64_t id = 5; id <= 9; ++id) ASSERT_TRUE(engine->Add(Request(id, 2 * static_cast<int64_t>(id), 1.2)).ok());
  EXPECT_EQ(engine->active() + static_cast<int64_t>(results.size()), 9);
  while (engine->active() > 0) step();
  ASSERT_THAT(results, SizeIs(9));
  for (uint64_t id = 1; id <= 4; ++id)
    EXPECT_EQ(
        results[id].token_ids,
        RunAlone(Request(id, 3 + 11 * static_cast<int64_t>(id), 0.8, 5 + 4 * static_cast<int64_t>(id))).token_ids);
  for (uint64_t id = 5; id <= 9; ++id)
    EXPECT_EQ(results[id].token_ids, RunAlone(Request(id, 2 * static_cast<int64_t>(id), 1.2)).token_ids);
}

TEST(GenerationEngine, GoesOnWhereAnEarlierRunStopped) {
  const GenerationResult whole = RunAlone(Request(3, 40, 0.9, 30));
  ASSERT_THAT(whole.token_ids, SizeIs(30));
  for (const int64_t kept : {1, 13, 29, 30}) {
    GenerationRequest request = Request(3, 40, 0.9, 30);
    request.generated.assign(whole.token_ids.begin(), whole.token_ids.begin() + kept);
    const GenerationResult resumed = RunAlone(request);
    EXPECT_EQ(resumed.token_ids, whole.token_ids) << "after " << kept;
    EXPECT_EQ(resumed.finish_reason, "length");
  }
}

TEST(GenerationEngine, SnapshotShowsWhatIsWritten) {
  const auto engine = MakeEngine(2);
  ASSERT_TRUE(engine->Add(Request(1, 4)).ok());
  ASSERT_TRUE(engine->Step().ok());
  ASSERT_TRUE(engine->Step().ok());
  const auto snapshot = engine->Snapshot();
  ASSERT_THAT(snapshot, SizeIs(1));
  EXPECT_EQ(snapshot[0].id, 1U);
  EXPECT_THAT(snapshot[0].token_ids, SizeIs(2));
  const auto whole = RunAlone(Request(1, 4)).token_ids;
  EXPECT_EQ(snapshot[0].token_ids, std::vector<int32_t>(whole.begin(), whole.begin() + 2));
}

TEST(GenerationEngine, StopsAtEosUnlessTold) {
  // With the token that greedy decoding writes sixth declared an EOS.
  const std::vector<int32_t> tokens = RunAlone(Request(1, 9)).token_ids;
  ModelWeights weights = MakeTestModel({.head_dim = 16});
  weights.config.eos_token_ids = {100, tokens[5]};
  size_t first = 0;
  while (tokens[first] != tokens[5]) ++first;
  for (const bool ignore : {false, true}) {
    auto engine = GenerationEngine::Create(weights, c10::ScalarType::Float, {});
    ASSERT_TRUE(engine.ok());
    GenerationRequest request = Request(1, 9);
    request.sampling.ignore_eos = ignore;
    ASSERT_TRUE((*engine)->Add(request).ok());
    const auto result = Finish(**engine)[1];
    EXPECT_EQ(result.finish_reason, ignore ? "length" : "stop");
    EXPECT_THAT(result.token_ids, SizeIs(ignore ? 20 : first + 1));
  }
}

TEST(GenerationEngine, EndsAtTheContext) {
  const auto engine = MakeEngine(2, 24);
  ASSERT_TRUE(engine->Add(Request(1, 20, 0.0, 50)).ok());
  const auto result = Finish(*engine)[1];
  EXPECT_THAT(result.token_ids, SizeIs(4));
  EXPECT_EQ(result.finish_reason, "length");
}

TEST(GenerationEngine, RefusesWhatCannotBeDone) {
  const auto engine = MakeEngine(2, 24);
  EXPECT_THAT(std::string(engine->Add(Request(1, 0)).message()), HasSubstr("empty"));
  EXPECT_THAT(std::string(engine->Add(Request(1, 24)).message()), HasSubstr("context of 24"));
  GenerationRequest request = Request(1, 3);
  request.prompt[1] = 101;
  EXPECT_THAT(std::string(engine->Add(request).message()), HasSubstr("outside the model's vocabulary of 101"));
  request = Request(1, 3);
  request.sampling.top_p = 0.0;
  EXPECT_FALSE(engine->Add(request).ok());
  request = Request(1, 3, 0.0, 0);
  EXPECT_FALSE(engine->Add(request).ok());
  EXPECT_EQ(engine->active(), 0);
}

}  // namespace
}  // namespace retort
