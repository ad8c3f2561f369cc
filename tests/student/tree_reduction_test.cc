#include "student/tree_reduction.h"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <thread>

#include "common/check.h"
#include "model/comm/tcp_mesh.h"

namespace retort {
namespace {

constexpr int64_t kNumel = 1003;  // not a multiple of the number of ranks

at::Tensor Gradient(int64_t step, int64_t leaf) {
  std::mt19937 random(static_cast<uint32_t>(step * 1000 + leaf));
  std::normal_distribution<float> normal(0, 1);
  at::Tensor gradient = at::empty({kNumel});
  float* values = gradient.data_ptr<float>();
  for (int64_t i = 0; i < kNumel; ++i) values[i] = normal(random) * std::exp2f(static_cast<float>(random() % 20));
  return gradient;
}

// The sums of a few steps of different sizes, as the last rank of a gang of `ranks` sees them.
std::vector<at::Tensor> Train(int ranks, const std::vector<int64_t>& leaves_by_step) {
  std::vector<TcpListener> listeners;
  TcpMeshOptions options;
  options.generation = 1;
  options.secret = std::string(32, 's');
  for (int rank = 0; rank < ranks; ++rank) {
    auto listener = TcpListener::Listen("127.0.0.1");
    RETORT_CHECK(listener.ok());
    options.addresses.push_back(listener->address());
    listeners.push_back(*std::move(listener));
  }
  std::vector<at::Tensor> result;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank, own = options]() mutable {
      own.rank = rank;
      auto mesh = TcpMesh::Connect(listeners[rank], own);
      ASSERT_TRUE(mesh.ok()) << mesh.status();
      TreeReduction reduction(**mesh, kNumel, c10::kCPU, true);
      for (size_t step = 0; step < leaves_by_step.size(); ++step) {
        const IndexRange range = reduction.Begin(leaves_by_step[step]);
        for (int64_t leaf = range.begin; leaf < range.end; ++leaf) {
          reduction.Leaf().copy_(Gradient(static_cast<int64_t>(step), leaf));
          reduction.Push();
        }
        at::Tensor sum = at::empty({kNumel});
        const absl::Status status = reduction.Finish(sum);
        ASSERT_TRUE(status.ok()) << status;
        if (rank == ranks - 1) result.push_back(sum);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return result;
}

// Also with more ranks than micro-batches, and with steps of changing size on the same buffers.
TEST(TreeReductionTest, TheSumHasTheSameBitsOnAnyNumberOfRanks) {
  const std::vector<int64_t> leaves_by_step = {4, 1, 7, 3, 8, 2};
  const std::vector<at::Tensor> alone = Train(1, leaves_by_step);
  ASSERT_EQ(alone.size(), leaves_by_step.size());
  for (size_t step = 0; step < leaves_by_step.size(); ++step) {
    at::Tensor exact = at::zeros({kNumel}, at::kDouble);
    for (int64_t leaf = 0; leaf < leaves_by_step[step]; ++leaf) {
      exact.add_(Gradient(static_cast<int64_t>(step), leaf).to(at::kDouble));
    }
    ASSERT_TRUE(at::allclose(alone[step].to(at::kDouble), exact, 1e-4, 1.0));
  }
  for (int ranks = 2; ranks <= 5; ++ranks) {
    const std::vector<at::Tensor> together = Train(ranks, leaves_by_step);
    ASSERT_EQ(together.size(), alone.size());
    for (size_t step = 0; step < alone.size(); ++step) {
      EXPECT_TRUE(at::equal(together[step], alone[step])) << ranks << " ranks, step " << step;
    }
  }
}

// An unfinished step leaves nothing behind in the next one.
TEST(TreeReductionTest, BeginDropsAnUnfinishedStep) {
  auto listener = TcpListener::Listen("127.0.0.1");
  ASSERT_TRUE(listener.ok());
  TcpMeshOptions options;
  options.addresses = {listener->address()};
  options.secret = std::string(32, 's');
  auto mesh = TcpMesh::Connect(*listener, options);
  ASSERT_TRUE(mesh.ok());
  TreeReduction reduction(**mesh, 2, c10::kCPU, true);
  reduction.Begin(3);
  reduction.Leaf().fill_(100);
  reduction.Push();
  reduction.Begin(1);
  reduction.Leaf().fill_(1);
  reduction.Push();
  at::Tensor sum = at::empty({2});
  ASSERT_TRUE(reduction.Finish(sum).ok());
  EXPECT_EQ(sum[0].item<float>(), 1.0f);
}

}  // namespace
}  // namespace retort
