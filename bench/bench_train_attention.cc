// How long each engine takes for the attention of a training step, forward and backward: one line of JSON each.
#include <ATen/ATen.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "bench/timing.h"
#include "common/log.h"
#include "model/device.h"
#include "model/training/training_attention.h"

namespace retort {
namespace {

using internal::AttentionEngine;

struct Options {
  std::string device = "cuda";
  std::string dtype = "bfloat16";
  int64_t heads = 32;
  int64_t kv_heads = 8;
  int64_t dim = 128;
  int64_t window = 0;
  int64_t ragged_tokens = 8192;
  int rounds = 20;
};

struct Batch {
  std::string name;
  std::vector<int64_t> offsets;
};

Batch Even(int64_t length, int64_t count) {
  Batch batch{std::to_string(length) + " x " + std::to_string(count), {0}};
  for (int64_t i = 0; i < count; ++i) batch.offsets.push_back(batch.offsets.back() + length);
  return batch;
}

// As reasoning traces have them: the logarithm of a length is normal, half are below 512 tokens.
Batch Ragged(int64_t tokens) {
  Batch batch{"log-normal " + std::to_string(tokens), {0}};
  std::mt19937 random(1);
  std::lognormal_distribution<double> lengths(std::log(512.0), 1.0);
  while (batch.offsets.back() < tokens) {
    const auto length = static_cast<int64_t>(std::clamp(lengths(random), 16.0, 16384.0));
    batch.offsets.push_back(std::min(tokens, batch.offsets.back() + length));
  }
  return batch;
}

class Bench {
 public:
  Bench(const Options& options, c10::Device device) : options_(options), device_(device) {}

  void Run(const Batch& batch) {
    const internal::PackedSamples samples(batch.offsets, device_);
    const int64_t tokens = batch.offsets.back();
    const auto type = at::TensorOptions(device_).dtype(options_.dtype == "float16" ? at::kHalf : at::kBFloat16);
    const int64_t width = (options_.heads + 2 * options_.kv_heads) * options_.dim;
    const at::Tensor qkv = at::empty({tokens, width}, type).normal_();
    const at::Tensor d_qkv = at::empty({tokens, width}, type);
    const at::Tensor d_out = at::empty({tokens, options_.heads, options_.dim}, type).normal_();
    at::Tensor out = at::empty_like(d_out);
    const auto part = [&](const at::Tensor& matrix, int64_t from, int64_t heads) {
      return matrix.narrow(1, from * options_.dim, heads * options_.dim).unflatten(1, {heads, options_.dim});
    };
    const int64_t first_v = options_.heads + options_.kv_heads;
    const at::Tensor q = part(qkv, 0, options_.heads);
    const at::Tensor k = part(qkv, options_.heads, options_.kv_heads);
    const at::Tensor v = part(qkv, first_v, options_.kv_heads);
    at::Tensor dq = part(d_qkv, 0, options_.heads);
    at::Tensor dk = part(d_qkv, options_.heads, options_.kv_heads);
    at::Tensor dv = part(d_qkv, first_v, options_.kv_heads);
    struct Variant {
      const char* name;
      AttentionEngine engine;
      bool deterministic;
    };
    for (const Variant& variant : {Variant{"cudnn", AttentionEngine::kCudnn, false},
                                   Variant{"cudnn deterministic", AttentionEngine::kCudnn, true},
                                   Variant{"flash", AttentionEngine::kFlash, false},
                                   Variant{"flash deterministic", AttentionEngine::kFlash, true},
                                   Variant{"aten", AttentionEngine::kAten, true}}) {
      const internal::AttentionOptions options{.scale = 1.0 / std::sqrt(static_cast<double>(options_.dim)),
                                               .window = options_.window,
                                               .deterministic = variant.deterministic,
                                               .engine = variant.engine};
      internal::AttentionTape tape;
      try {
        Time(batch, variant.name, "forward", 4.0,
             [&] { internal::AttendForward(q, k, v, samples, options, out, tape); });
        Time(batch, variant.name, "backward", 10.0,
             [&] { internal::AttendBackward(d_out, q, k, v, out, tape, samples, options, dq, dk, dv); });
      } catch (const std::exception& error) {
        const std::string text = error.what();
        Print({{"batch", batch.name}, {"engine", variant.name}, {"refused", text.substr(0, text.find('\n'))}});
      }
    }
  }

 private:
  // `products`: operations for each pair of tokens, head and column.
  void Time(const Batch& batch, const char* engine, const char* pass, double products,
            const std::function<void()>& body) {
    const double first = bench::Milliseconds(device_, body);
    std::vector<double> milliseconds;
    for (int round = -2; round < options_.rounds; ++round) {  // two warm up
      const double taken = bench::Milliseconds(device_, body);
      if (round >= 0) milliseconds.push_back(taken);
    }
    std::sort(milliseconds.begin(), milliseconds.end());
    const double median = milliseconds[milliseconds.size() / 2];
    Print(
        {{"batch", batch.name},
         {"samples", batch.offsets.size() - 1},
         {"engine", engine},
         {"pass", pass},
         {"ms", median},
         {"fastest_ms", milliseconds.front()},
         {"slowest_ms", milliseconds.back()},
         {"first_ms", first},
         {"TFLOP_per_s", products * Pairs(batch) * static_cast<double>(options_.heads * options_.dim) / median / 1e9}});
  }

  // Of tokens where the one sees the other.
  double Pairs(const Batch& batch) const {
    double pairs = 0.0;
    for (size_t i = 0; i + 1 < batch.offsets.size(); ++i) {
      const auto length = static_cast<double>(batch.offsets[i + 1] - batch.offsets[i]);
      const double window = options_.window > 0 ? std::min(length, static_cast<double>(options_.window)) : length;
      pairs += window * (window + 1) / 2 + (length - window) * window;
    }
    return pairs;
  }

  static void Print(const nlohmann::json& line) {
    std::printf("%s\n", line.dump().c_str());
    std::fflush(stdout);
  }

  const Options options_;
  const c10::Device device_;
};

int Main(int argc, char** argv) {
  OpenCudaIfPresent();
  InitLogging("bench-train-attention");
  Options options;
  CLI::App app{"Times the engines of a training step's attention."};
  app.add_option("--device", options.device)->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--dtype", options.dtype)->check(CLI::IsMember({"bfloat16", "float16"}));
  app.add_option("--heads", options.heads)->check(CLI::Range(1, 1024));
  app.add_option("--kv-heads", options.kv_heads)->check(CLI::Range(1, 1024));
  app.add_option("--dim", options.dim)->check(CLI::Range(8, 256));
  app.add_option("--window", options.window, "0: all tokens")->check(CLI::Range(0, 1 << 20));
  app.add_option("--ragged-tokens", options.ragged_tokens)->check(CLI::Range(1, 1 << 20));
  app.add_option("--rounds", options.rounds)->check(CLI::Range(1, 10000));
  CLI11_PARSE(app, argc, argv);
  const absl::StatusOr<c10::Device> device = ChooseDevice(options.device);
  if (!device.ok()) {
    std::fprintf(stderr, "bench-train-attention: %s\n", std::string(device.status().message()).c_str());
    return 1;
  }
  Bench bench(options, *device);
  for (const Batch& batch : {Even(2048, 2), Even(4096, 4), Ragged(options.ragged_tokens)}) bench.Run(batch);
  return 0;
}

}  // namespace
}  // namespace retort

int main(int argc, char** argv) { return retort::Main(argc, argv); }
