// How near the kernels beside a training step's products come to the memory's speed: each at the shapes of Llama-3.1-8B
// with LoRA, in bytes that it must move (every input read once, every output written once) per second.
#include <ATen/ATen.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>

#include "bench/timing.h"
#include "common/log.h"
#include "common/status.h"
#include "model/device.h"
#include "model/training/fused_ops.h"

namespace retort {
namespace {

using at::Tensor;

struct Options {
  std::string device = "cuda";
  int64_t tokens = 4096;
  int64_t hidden = 4096;
  int64_t intermediate = 14336;
  int64_t heads = 32;
  int64_t kv_heads = 8;
  int64_t head_dim = 128;
  int64_t vocabulary = 128256;
  int64_t chunk = 1024;
  int64_t layers = 32;
  int64_t lora_r = 16;
  int rounds = 20;
};

// What is timed goes round among so many sets of inputs that none is still in the caches.
constexpr double kBytesAmongSets = 400e6;

class Bench {
 public:
  Bench(const Options& options, c10::Device device)
      : options_(options),
        device_(device),
        ops_(FusedOps::For(device)),
        half_(at::TensorOptions(device).dtype(at::kBFloat16)),
        single_(at::TensorOptions(device).dtype(at::kFloat)) {}

  void Run() {
    Copy();
    Norms();
    Rotation();
    SwiGlu();
    CrossEntropy();
    Optimizer();
  }

 private:
  using Sets = std::vector<std::vector<Tensor>>;

  // Times `body` over sets of tensors that `make` gives, the median of the rounds. `restore`: untimed, before each
  // round, for what works in place.
  void Time(const std::string& kernel, double bytes, const std::function<std::vector<Tensor>()>& make,
            const std::function<void(std::vector<Tensor>&)>& body,
            const std::function<void(std::vector<Tensor>&)>& restore = nullptr) {
    const auto count = static_cast<size_t>(std::clamp(kBytesAmongSets / bytes, 2.0, 16.0));
    Sets sets(count);
    for (std::vector<Tensor>& set : sets) set = make();
    std::vector<double> milliseconds;
    for (int round = -2; round < options_.rounds; ++round) {  // two warm up
      if (restore != nullptr) {
        for (std::vector<Tensor>& set : sets) restore(set);
      }
      const double taken = bench::Milliseconds(device_, [&] {
        for (std::vector<Tensor>& set : sets) body(set);
      });
      if (round >= 0) milliseconds.push_back(taken / static_cast<double>(count));
    }
    std::sort(milliseconds.begin(), milliseconds.end());
    const double median = milliseconds[milliseconds.size() / 2];
    const double speed = bytes / median / 1e6;
    if (copy_speed_ == 0.0) copy_speed_ = speed;
    const nlohmann::json line = {{"kernel", kernel},
                                 {"bytes", bytes},
                                 {"ms", median},
                                 {"fastest_ms", milliseconds.front()},
                                 {"slowest_ms", milliseconds.back()},
                                 {"GB_per_s", speed},
                                 {"of_copy", speed / copy_speed_}};
    std::printf("%s\n", line.dump().c_str());
    std::fflush(stdout);
  }

  Tensor Normal(at::IntArrayRef sizes, const at::TensorOptions& options) { return at::empty(sizes, options).normal_(); }

  void Copy() {
    const int64_t count = options_.tokens * options_.intermediate;
    Time(
        "copy", 4.0 * static_cast<double>(count),
        [&] {
          return std::vector<Tensor>{Normal({count}, half_), at::empty({count}, half_)};
        },
        [](std::vector<Tensor>& set) { set[1].copy_(set[0]); });
  }

  void Norms() {
    const int64_t rows = options_.tokens;
    const int64_t width = options_.hidden;
    const double pass = 2.0 * static_cast<double>(rows * width);
    const Tensor weight = Normal({width}, half_);
    const auto matrices = [&](int count) {
      return [&, count] {
        std::vector<Tensor> set(count);
        for (Tensor& matrix : set) matrix = Normal({rows, width}, half_);
        return set;
      };
    };
    Time("rms_norm", 2 * pass, matrices(2),
         [&](std::vector<Tensor>& set) { ops_.RmsNorm(set[0], weight, 1e-5, set[1]); });
    Time("rms_norm_backward_with_residual", 4 * pass, matrices(4),
         [&](std::vector<Tensor>& set) { ops_.RmsNormBackward(set[0], set[1], weight, 1e-5, set[2], set[3]); });
    // As Qwen3 has them, within the rows of queries, keys and values.
    const Tensor head_weight = Normal({options_.head_dim}, half_);
    const double heads_pass = 2.0 * static_cast<double>(rows * options_.heads * options_.head_dim);
    Time(
        "rms_norm_of_heads", 2 * heads_pass,
        [&] {
          return std::vector<Tensor>{Normal({rows, QkvWidth()}, half_)};
        },
        [&](std::vector<Tensor>& set) {
          Tensor heads = set[0].narrow(1, 0, options_.heads * options_.head_dim).unflatten(1, {options_.heads, -1});
          ops_.RmsNorm(heads, head_weight, 1e-5, heads);
        });
  }

  int64_t QkvWidth() const { return (options_.heads + 2 * options_.kv_heads) * options_.head_dim; }

  void Rotation() {
    const int64_t heads = options_.heads + options_.kv_heads;
    const int64_t half = options_.head_dim / 2;
    const Tensor angles = at::rand({options_.tokens, half}, single_) * 6.3;
    const Tensor cos = angles.cos();
    const Tensor sin = angles.sin();
    const double bytes = 4.0 * static_cast<double>(options_.tokens * heads * options_.head_dim) +
                         8.0 * static_cast<double>(options_.tokens * half);
    Time(
        "rotate_queries_and_keys", bytes,
        [&] {
          return std::vector<Tensor>{Normal({options_.tokens, QkvWidth()}, half_)};
        },
        [&](std::vector<Tensor>& set) {
          Tensor turned = set[0].narrow(1, 0, heads * options_.head_dim);
          ops_.Rotate(turned, heads, cos, sin, false);
        });
  }

  void SwiGlu() {
    const int64_t rows = options_.tokens;
    const int64_t width = options_.intermediate;
    const double pass = 2.0 * static_cast<double>(rows * width);
    const Tensor original = Normal({rows, 2 * width}, half_);
    const auto make = [&] { return std::vector<Tensor>{original.clone(), Normal({rows, width}, half_)}; };
    const auto restore = [&](std::vector<Tensor>& set) { set[0].copy_(original); };
    Time("swiglu", 3 * pass, make, [&](std::vector<Tensor>& set) { ops_.SwiGlu(set[0], set[1]); });
    const Tensor grad = Normal({rows, width}, half_);
    Time(
        "swiglu_backward_with_value", 6 * pass, make,
        [&](std::vector<Tensor>& set) { ops_.SwiGluBackward(grad, set[0], set[1]); }, restore);
  }

  void CrossEntropy() {
    const Tensor original = Normal({options_.chunk, options_.vocabulary}, half_);
    const Tensor targets = at::randint(options_.vocabulary, {options_.chunk}, half_.dtype(at::kLong));
    Tensor losses = at::empty({options_.chunk}, single_);
    const double pass = 2.0 * static_cast<double>(original.numel());
    const auto make = [&] { return std::vector<Tensor>{original.clone()}; };
    const auto restore = [&](std::vector<Tensor>& set) { set[0].copy_(original); };
    Time(
        "cross_entropy_and_gradient", 2 * pass, make,
        [&](std::vector<Tensor>& set) { ops_.CrossEntropy(set[0], targets, 1.0F, true, losses); }, restore);
    Time("cross_entropy", pass, make,
         [&](std::vector<Tensor>& set) { ops_.CrossEntropy(set[0], targets, 1.0F, false, losses); });
  }

  // A and B of every module, one behind the other; `transposed` blocks: B, whose matrix is [r, out].
  std::vector<FlatBlock> AdapterBlocks() {
    const Options& o = options_;
    const int64_t q = o.heads * o.head_dim;
    const int64_t kv = o.kv_heads * o.head_dim;
    std::vector<FlatBlock> blocks;
    int64_t offset = 0;
    for (int64_t layer = 0; layer < o.layers; ++layer) {
      for (const auto& [in, out] : std::vector<std::pair<int64_t, int64_t>>{{o.hidden, q},
                                                                            {o.hidden, kv},
                                                                            {o.hidden, kv},
                                                                            {q, o.hidden},
                                                                            {o.hidden, o.intermediate},
                                                                            {o.hidden, o.intermediate},
                                                                            {o.intermediate, o.hidden}}) {
        FlatBlock a{.offset = offset, .rows = o.lora_r, .columns = in};
        a.matrix = at::empty({o.lora_r, in}, half_);
        FlatBlock b{.offset = offset + o.lora_r * in, .rows = out, .columns = o.lora_r};
        b.matrix = at::empty({o.lora_r, out}, half_);
        b.transposed = true;
        b.scale = 2.0F;
        offset = b.offset + out * o.lora_r;
        blocks.push_back(std::move(a));
        blocks.push_back(std::move(b));
      }
    }
    return blocks;
  }

  void Optimizer() {
    const std::vector<FlatBlock> blocks = AdapterBlocks();
    const int64_t count = blocks.back().offset + blocks.back().rows * blocks.back().columns;
    const auto numel = static_cast<double>(count);
    Tensor square_sum = at::empty({1}, single_.dtype(at::kDouble));
    const auto buffers = [&](int buffer_count) {
      return [&, buffer_count] {
        std::vector<Tensor> set(buffer_count);
        for (Tensor& buffer : set) buffer = Normal({count}, single_).abs_();
        return set;
      };
    };
    Time("square_sum", 4 * numel, buffers(1), [&](std::vector<Tensor>& set) { ops_.SquareSum(set[0], square_sum); });
    const FusedAdamW step = {
        .learning_rate = 2e-4, .weight_decay = 0.01, .bias_correction1 = 0.1, .bias_correction2_sqrt = 0.03};
    const auto adamw = [&](const std::vector<std::pair<int64_t, int64_t>>& undecayed) {
      return [&](std::vector<Tensor>& set) {
        ops_.AdamW(step, square_sum, 1.0, undecayed, set[0], set[1], set[2], set[3]);
      };
    };
    Time("adamw", 28 * numel, buffers(4), adamw({}));
    std::vector<std::pair<int64_t, int64_t>> every_b;
    for (const FlatBlock& block : blocks) {
      if (block.transposed) every_b.emplace_back(block.offset, block.offset + block.rows * block.columns);
    }
    Time("adamw_with_ranges", 28 * numel, buffers(4), adamw(every_b));
    const auto writer = ops_.MakeFlatBlocks(blocks);
    Time("flat_blocks", 6 * numel, buffers(1), [&](std::vector<Tensor>& set) { writer->Write(set[0]); });
  }

  const Options& options_;
  const c10::Device device_;
  const FusedOps& ops_;
  const at::TensorOptions half_;
  const at::TensorOptions single_;
  double copy_speed_ = 0.0;
};

int Main(int argc, char** argv) {
  OpenCudaIfPresent();
  InitLogging("bench-train-kernels");
  Options options;
  CLI::App app{"Times the kernels beside a training step's matrix products; a line of JSON each."};
  app.add_option("--device", options.device)->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--tokens", options.tokens)->check(CLI::Range(1, 1 << 20));
  app.add_option("--hidden", options.hidden)->check(CLI::Range(1, 1 << 20));
  app.add_option("--intermediate", options.intermediate)->check(CLI::Range(1, 1 << 20));
  app.add_option("--vocabulary", options.vocabulary)->check(CLI::Range(1, 1 << 24));
  app.add_option("--chunk", options.chunk, "Rows of logits")->check(CLI::Range(1, 1 << 20));
  app.add_option("--layers", options.layers, "Whose adapters are stepped")->check(CLI::Range(1, 1 << 10));
  app.add_option("--lora-r", options.lora_r)->check(CLI::Range(1, 4096));
  app.add_option("--rounds", options.rounds, "After two that warm up")->check(CLI::Range(1, 1 << 20));
  CLI11_PARSE(app, argc, argv);
  const absl::StatusOr<c10::Device> device = ChooseDevice(options.device);
  if (!device.ok()) {
    std::fprintf(stderr, "bench-train-kernels: %s\n", std::string(device.status().message()).c_str());
    return 1;
  }
  Bench(options, *device).Run();
  return 0;
}

}  // namespace
}  // namespace retort

int main(int argc, char** argv) { return retort::Main(argc, argv); }
