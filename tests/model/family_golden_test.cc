// Tiny random models of every family against what transformers gives of them (tests/golden/make_family_golden.py):
// log-probabilities, greedy tokens, the norms of every layer's hidden states; whole and shared between ranks.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "common/json.h"
#include "model/blocks/block.h"
#include "model/blocks/ops.h"
#include "model/comm/tcp_mesh.h"
#include "model/generation/engine.h"
#include "model/generation/rope.h"
#include "model/generation/scoring.h"

namespace retort {
namespace {

using nlohmann::json;

constexpr double kTolerance = 2e-4;

std::string Root() { return std::string(std::getenv("RETORT_SOURCE_DIR")) + "/tests/golden/families"; }

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(Root())) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

class FamilyGoldenTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    folder_ = Root() + "/" + GetParam();
    expected_ = ReadJsonFile(folder_ + "/expected.json").value();
  }

  std::vector<std::vector<int32_t>> Sequences() const {
    std::vector<std::vector<int32_t>> sequences;
    for (const json& one : expected_["sequences"]) sequences.push_back(one["token_ids"]);
    return sequences;
  }

  void CheckScores(const std::vector<std::vector<float>>& scores, double tolerance) const {
    for (size_t i = 0; i < scores.size(); ++i) {
      const json& wanted = expected_["sequences"][i]["logprobs"];
      ASSERT_EQ(scores[i].size(), wanted.size());
      EXPECT_TRUE(std::isnan(scores[i][0]));
      for (size_t t = 1; t < wanted.size(); ++t) {
        ASSERT_NEAR(scores[i][t], wanted[t].get<double>(), tolerance) << "token " << t << " of sequence " << i;
      }
    }
  }

  std::string folder_;
  json expected_;
};

TEST_P(FamilyGoldenTest, LogProbabilities) {
  auto scorer = Scorer::Create(LoadWeights(folder_, at::kFloat, at::kCPU).value(), at::kFloat, /*beyond_context=*/true);
  ASSERT_TRUE(scorer.ok()) << scorer.status();
  CheckScores((*scorer)->Score(Sequences()).value(), kTolerance);
}

TEST_P(FamilyGoldenTest, GreedyTokens) {
  EngineOptions options;
  options.max_sequence_length = 4096;
  options.beyond_context = true;
  auto engine = GenerationEngine::Create(LoadWeights(folder_, at::kFloat, at::kCPU).value(), at::kFloat, options);
  ASSERT_TRUE(engine.ok()) << engine.status();
  const json& wanted = expected_["greedy"];
  for (size_t i = 0; i < wanted.size(); ++i) {
    GenerationRequest request{.id = i, .prompt = wanted[i]["prompt"]};
    request.sampling = {.max_tokens = static_cast<int64_t>(wanted[i]["token_ids"].size()), .ignore_eos = true};
    ASSERT_TRUE((*engine)->Add(request).ok());
  }
  size_t seen = 0;
  while ((*engine)->active() > 0) {
    const auto ended = (*engine)->Step();
    ASSERT_TRUE(ended.ok()) << ended.status();
    for (const GenerationResult& result : *ended) {
      EXPECT_EQ(json(result.token_ids), wanted[result.id]["token_ids"]) << "prompt " << result.id;
      ++seen;
    }
  }
  EXPECT_EQ(seen, wanted.size());
}

// The block as it stands, over one sequence.
class PlainContext final : public LayerContext {
 public:
  PlainContext(const ModelConfig& config, const LayerWeights& weights, int64_t tokens)
      : config_(config), weights_(weights), offsets_({0, tokens}) {}
  at::Tensor Project(Projection projection, const at::Tensor& x) override {
    const Linear& linear = weights_[projection];
    const at::Tensor y = at::matmul(x, linear.weight.t());
    return linear.bias.defined() ? y + linear.bias : y;
  }
  at::Tensor Attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t window) override {
    return PackedAttention(q, k, v, offsets_, config_.attention_scale, window);
  }

 private:
  const ModelConfig& config_;
  const LayerWeights& weights_;
  const std::vector<int64_t> offsets_;
};

TEST_P(FamilyGoldenTest, HiddenStatesOfEveryLayer) {
  const c10::InferenceMode inference;
  const ModelWeights weights = LoadWeights(folder_, at::kFloat, at::kCPU).value();
  const json& wanted = expected_["hidden_norms"];
  const std::vector<int64_t> ids = wanted["token_ids"];
  const auto check = [&](const at::Tensor& hidden, const json& norms, const std::string& where) {
    const at::Tensor own = hidden.norm(2, -1);
    ASSERT_EQ(own.numel(), static_cast<int64_t>(norms.size())) << where;
    for (int64_t t = 0; t < own.numel(); ++t) {
      const double norm = norms[static_cast<size_t>(t)];
      ASSERT_NEAR(own[t].item<double>(), norm, 2e-4 * (1.0 + norm)) << where << ", token " << t;
    }
  };
  const auto tokens = static_cast<int64_t>(ids.size());
  internal::RopeTables tables(weights.config);
  const internal::RopeTable& table = tables.For(tokens, tokens);
  const RopeRows rope{table.cos.narrow(0, 0, tokens).unsqueeze(1), table.sin.narrow(0, 0, tokens).unsqueeze(1)};
  at::Tensor x = weights.embed_tokens.index_select(0, at::tensor(ids));
  check(x, wanted["embeddings"], "embeddings");
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    PlainContext context(weights.config, weights.layers[i], tokens);
    x = RunBlock(weights.config, weights.layers[i], static_cast<int64_t>(i), x, rope, context);
    check(x, wanted["layers"][i], "layer " + std::to_string(i));
  }
  check(RmsNorm(x, weights.final_norm, weights.config.rms_norm_eps), wanted["final_norm"], "final norm");
}

// Ranks as threads of this process, joined by TCP.
TEST_P(FamilyGoldenTest, RanksThatShareTheModel) {
  for (const int size : {2, 4}) {
    std::vector<TcpListener> listeners;
    std::vector<std::string> addresses;
    for (int i = 0; i < size; ++i) {
      listeners.push_back(TcpListener::Listen("127.0.0.1").value());
      addresses.push_back(listeners.back().address());
    }
    std::vector<std::vector<std::vector<float>>> scores(static_cast<size_t>(size));
    std::vector<absl::Status> statuses(static_cast<size_t>(size));
    const auto run = [&](int rank) -> absl::Status {
      auto weights = LoadWeightsOfRank(folder_, at::kFloat, at::kCPU, rank, size);
      if (!weights.ok()) return weights.status();
      auto mesh = TcpMesh::Connect(listeners[static_cast<size_t>(rank)],
                                   {.rank = rank, .addresses = addresses, .secret = std::string(32, 's')});
      if (!mesh.ok()) return mesh.status();
      TensorGroup group(**mesh);
      auto scorer = Scorer::Create(*std::move(weights), at::kFloat, /*beyond_context=*/true, &group);
      if (!scorer.ok()) return scorer.status();
      auto result = (*scorer)->Score(Sequences());
      if (!result.ok()) return result.status();
      scores[static_cast<size_t>(rank)] = *std::move(result);
      return absl::OkStatus();
    };
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] { statuses[static_cast<size_t>(rank)] = run(rank); });
    }
    for (std::thread& thread : threads) thread.join();
    for (const absl::Status& status : statuses) {
      ASSERT_TRUE(status.ok()) << status;
    }
    CheckScores(scores[0], kTolerance);
    for (const auto& rank_scores : scores) {
      for (size_t i = 0; i < rank_scores.size(); ++i) {
        // The same bits everywhere; the first is NaN.
        EXPECT_TRUE(std::equal(rank_scores[i].begin() + 1, rank_scores[i].end(), scores[0][i].begin() + 1));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyGoldenTest, testing::ValuesIn(Names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace retort
