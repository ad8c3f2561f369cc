#include "bench/train_floor.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <functional>
#include <vector>

#include "bench/timing.h"
#include "model/training/fused_layer.h"
#include "model/training/training_attention.h"

namespace retort::bench {
namespace {

using internal::AttentionOptions;
using internal::AttentionTape;
using internal::PackedSamples;

double Median(c10::Device device, int repeats, const std::function<void()>& work) {
  work();  // warms up
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) {
    Synchronize(device);
    const double start = Seconds();
    work();
    Synchronize(device);
    seconds.push_back(Seconds() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

double ProductsOf(const ModelWeights& weights, const std::vector<Projection>& group, int64_t tokens, int repeats) {
  // A few layers' copies are enough to be larger than any cache.
  constexpr size_t kCopies = 4;
  std::vector<at::Tensor> matrices;
  for (size_t i = 0; i < std::min(kCopies, weights.layers.size()); ++i) {
    std::vector<at::Tensor> parts;
    parts.reserve(group.size());
    for (const Projection projection : group) parts.push_back(weights.layers[i][projection].weight);
    matrices.push_back(parts.size() == 1 ? parts.front() : at::cat(parts, 0));
  }
  const at::Tensor x = at::randn({tokens, matrices.front().size(1)}, matrices.front().options());
  const at::Tensor dy = at::randn({tokens, matrices.front().size(0)}, matrices.front().options());
  at::Tensor y = at::empty_like(dy);
  at::Tensor dx = at::empty_like(x);
  const c10::Device device = x.device();
  const double forward = Median(device, repeats, [&] {
    for (size_t i = 0; i < weights.layers.size(); ++i) at::mm_out(y, x, matrices[i % matrices.size()].t());
  });
  const double backward = Median(device, repeats, [&] {
    for (size_t i = 0; i < weights.layers.size(); ++i) at::mm_out(dx, dy, matrices[i % matrices.size()]);
  });
  return forward + backward;
}

double HeadOf(const ModelWeights& weights, int64_t tokens, int repeats) {
  constexpr int64_t kRows = 1024;
  const at::Tensor x = at::randn({tokens, weights.lm_head.size(1)}, weights.lm_head.options());
  const at::Tensor dy = at::randn({std::min(kRows, tokens), weights.lm_head.size(0)}, weights.lm_head.options());
  at::Tensor y = at::empty_like(dy);
  at::Tensor dx = at::empty_like(x);
  return Median(x.device(), repeats, [&] {
    for (int64_t first = 0; first < tokens; first += kRows) {
      const int64_t rows = std::min(kRows, tokens - first);
      at::Tensor out = y.narrow(0, 0, rows);
      at::Tensor back = dx.narrow(0, first, rows);
      at::mm_out(out, x.narrow(0, first, rows), weights.lm_head.t());
      at::mm_out(back, dy.narrow(0, 0, rows), weights.lm_head);
    }
  });
}

double AttentionOf(const ModelWeights& weights, int64_t sequence_length, int64_t batch_size, int repeats) {
  const ModelConfig& config = weights.config;
  const int64_t tokens = sequence_length * batch_size;
  const auto options = weights.embed_tokens.options();
  const auto heads = [&](int64_t count) { return at::randn({tokens, count, config.head_dim}, options); };
  const at::Tensor q = heads(config.num_attention_heads), d_out = heads(config.num_attention_heads);
  const at::Tensor k = heads(config.num_key_value_heads), v = heads(config.num_key_value_heads);
  at::Tensor out = at::empty_like(q), dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
  std::vector<int64_t> offsets;
  for (int64_t i = 0; i <= batch_size; ++i) offsets.push_back(i * sequence_length);
  const PackedSamples samples(offsets, q.device());
  const AttentionOptions attention{.scale = config.attention_scale, .window = config.window(0), .deterministic = false};
  return Median(q.device(), repeats, [&] {
    for (size_t i = 0; i < weights.layers.size(); ++i) {
      AttentionTape tape;
      internal::AttendForward(q, k, v, samples, attention, out, tape);
      internal::AttendBackward(d_out, q, k, v, out, tape, samples, attention, dq, dk, dv);
    }
  });
}

}  // namespace

TrainFloor MeasureTrainFloor(const ModelWeights& weights, int64_t sequence_length, int64_t batch_size, int repeats) {
  const c10::NoGradGuard no_grad;
  const int64_t tokens = sequence_length * batch_size;
  TrainFloor floor;
  const internal::LinearGroups groups = internal::LinearGroupsOf(weights.config);
  for (const auto* group : {&groups.qkv, &groups.o, &groups.gate_up, &groups.down}) {
    floor.products_seconds += ProductsOf(weights, *group, tokens, repeats);
  }
  floor.head_seconds = HeadOf(weights, tokens, repeats);
  floor.attention_seconds = AttentionOf(weights, sequence_length, batch_size, repeats);
  return floor;
}

double TrainFlopsPerToken(const ModelConfig& config, int64_t sequence_length) {
  double weights = static_cast<double>(config.hidden_size) * static_cast<double>(config.vocab_size);
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    for (const ProjectionShape& shape : ProjectionsOf(config, layer)) {
      weights += static_cast<double>(shape.in_features) * static_cast<double>(shape.out_features);
    }
  }
  const double attention = 3.0 * 2.0 * static_cast<double>(sequence_length) *
                           static_cast<double>(config.num_attention_heads * config.head_dim) *
                           static_cast<double>(config.num_hidden_layers);
  return 4.0 * weights + attention;
}

}  // namespace retort::bench
