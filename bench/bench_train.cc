// LoRA training speed of one process, and what bounds it: the counterpart of bench/peers/train_peft_cpu.py and
// train_peft.py.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <sys/resource.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "bench/timing.h"
#include "bench/train_floor.h"
#include "bench/train_shapes.h"
#include "common/log.h"
#include "common/status.h"
#include "model/device.h"
#include "model/lora.h"
#include "model/training/fused_ops.h"
#include "model/training_model.h"
#include "model/weights.h"

namespace retort {
namespace {

struct Options {
  std::string model;
  std::string device = "auto";
  std::string dtype = "float32";
  int64_t sequence_length = 128;
  int64_t batch_size = 4;
  int64_t steps = 6;
  int64_t layers = 0;
  int64_t lora_r = 16;
  int threads = 0;
  bool deterministic = true;
  bool floor = false;
  std::string checkpointing = "auto";
  std::string trace;
  bool json = false;
};

MicroBatch RandomBatch(const Options& options, int64_t vocab_size) {
  std::mt19937 random(0);
  MicroBatch batch{.sequence_offsets = {0}};
  for (int64_t sample = 0; sample < options.batch_size; ++sample) {
    for (int64_t i = 0; i < options.sequence_length; ++i) {
      batch.input_ids.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(vocab_size)));
    }
    batch.sequence_offsets.push_back(static_cast<int64_t>(batch.input_ids.size()));
  }
  batch.labels = batch.input_ids;
  return batch;
}

// Clipping at 1 and torch.optim.AdamW without weight decay, over one flat buffer.
class Optimizer {
 public:
  explicit Optimizer(const at::Tensor& parameters)
      : ops_(FusedOps::For(parameters.device())),
        mean_(at::zeros_like(parameters)),
        square_(at::zeros_like(parameters)),
        norm_(at::empty({1}, parameters.options().dtype(at::kDouble))) {}

  void Step(const at::Tensor& gradient, at::Tensor& parameters) {
    ++steps_;
    FusedAdamW step{.learning_rate = 2e-4};
    step.bias_correction1 = 1.0 - std::pow(0.9, steps_);
    step.bias_correction2_sqrt = std::sqrt(1.0 - std::pow(0.999, steps_));
    ops_.SquareSum(gradient, norm_);
    ops_.AdamW(step, norm_, /*max_norm=*/1.0, {}, gradient, parameters, mean_, square_);
  }

 private:
  const FusedOps& ops_;
  at::Tensor mean_, square_, norm_;
  double steps_ = 0.0;
};

absl::StatusOr<ModelWeights> MakeWeights(const Options& options, c10::ScalarType dtype, c10::Device device) {
  if (std::filesystem::is_directory(options.model)) return LoadWeights(options.model, dtype, device);
  ASSIGN_OR_RETURN(ModelConfig config, bench::ShapeOf(options.model));
  if (options.layers > 0) config.num_hidden_layers = options.layers;
  return RandomWeights(config, dtype, device, /*seed=*/0);
}

GradientCheckpointing CheckpointingOf(const std::string& name) {
  if (name == "true") return GradientCheckpointing::kAlways;
  return name == "false" ? GradientCheckpointing::kNever : GradientCheckpointing::kAuto;
}

int64_t PeakBytes(c10::Device device) {
  if (device.is_cuda()) {
    constexpr auto kAll = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    return c10::getDeviceAllocator(device.type())->getDeviceStats(device.index()).allocated_bytes[kAll].peak;
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : 0.5 * (values[middle - 1] + values[middle]);
}

// B is zero at first, and zeros are multiplied faster than other numbers.
void FillB(LoraAdapter& adapter) {
  for (auto& [name, pair] : adapter.modules) pair.b.normal_(0.0, 1e-3);
}

absl::StatusOr<nlohmann::json> Run(const Options& options) {
  ASSIGN_OR_RETURN(const c10::Device device, ChooseDevice(options.device));
  SetThreads(options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency()));
  const c10::ScalarType dtype = options.dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
  ASSIGN_OR_RETURN(ModelWeights weights, MakeWeights(options, dtype, device));
  const ModelConfig config = weights.config;
  nlohmann::json result;
  const double tokens = static_cast<double>(options.batch_size * options.sequence_length);
  if (options.floor) {
    if (!device.is_cuda()) return absl::InvalidArgumentError("--floor: needs a GPU");
    const bench::TrainFloor floor =
        bench::MeasureTrainFloor(weights, options.sequence_length, options.batch_size, /*repeats=*/5);
    result["floor"] = {{"tokens_per_second", tokens / floor.seconds()},
                       {"products_seconds", floor.products_seconds},
                       {"head_seconds", floor.head_seconds},
                       {"attention_seconds", floor.attention_seconds}};
    c10::getDeviceAllocator(device.type())->emptyCache();
    c10::getDeviceAllocator(device.type())->resetPeakStats(device.index());
  }
  const double loaded = bench::Seconds();
  const LoraConfig lora{
      .r = options.lora_r, .lora_alpha = 2.0 * static_cast<double>(options.lora_r), .target_modules = {"all-linear"}};
  ASSIGN_OR_RETURN(LoraAdapter adapter, InitLora(config, lora, /*seed=*/0));
  FillB(adapter);
  ASSIGN_OR_RETURN(const std::unique_ptr<TrainingModel> model,
                   TrainingModel::Create(std::move(weights), adapter,
                                         {.compute_dtype = dtype,
                                          .deterministic = options.deterministic,
                                          .gradient_checkpointing = CheckpointingOf(options.checkpointing)}));
  const MicroBatch batch = RandomBatch(options, config.vocab_size);
  const double trained = static_cast<double>(options.batch_size * (options.sequence_length - 1));
  at::Tensor gradient = at::zeros_like(model->flat_parameters());
  Optimizer optimizer(model->flat_parameters());
  std::vector<double> seconds;
  double loss = 0.0;
  for (int64_t step = 0; step <= options.steps; ++step) {  // the first warms up
    const double start = bench::Seconds();
    ASSIGN_OR_RETURN(const LossSum sum,
                     model->ForwardBackward(batch, 1.0 / trained, static_cast<uint64_t>(step), gradient));
    optimizer.Step(gradient, model->flat_parameters());
    loss = sum.loss / static_cast<double>(sum.trained_tokens);
    bench::Synchronize(device);
    if (step == 0) {
      result["first_step_seconds"] = bench::Seconds() - loaded;  // after the weights were in memory
    } else {
      seconds.push_back(bench::Seconds() - start);
    }
  }
  if (!options.trace.empty()) {
    using torch::profiler::impl::ActivityType;
    const std::set<ActivityType> activities{ActivityType::CPU, ActivityType::CUDA};
    const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
    torch::autograd::profiler::prepareProfiler(config, activities);
    torch::autograd::profiler::enableProfiler(config, activities);
    RETURN_IF_ERROR(model->ForwardBackward(batch, 1.0 / trained, 0, gradient).status());
    optimizer.Step(gradient, model->flat_parameters());
    bench::Synchronize(device);
    torch::autograd::profiler::disableProfiler()->save(options.trace);
  }
  const double speed = tokens / Median(seconds);
  result["tokens_per_second"] = speed;
  result["tflops"] = speed * bench::TrainFlopsPerToken(config, options.sequence_length) / 1e12;
  if (options.floor) result["of_floor"] = speed / result["floor"]["tokens_per_second"].get<double>();
  result[device.is_cuda() ? "peak_device_bytes" : "peak_rss_bytes"] = PeakBytes(device);
  result["loss"] = loss;
  result["step_seconds"] = seconds;
  result["threads"] = at::get_num_threads();
  return result;
}

int Main(int argc, char** argv) {
  OpenCudaIfPresent();
  InitLogging("bench-train");
  Options options;
  CLI::App app{"Trains a LoRA adapter on random tokens, every position trained, and prints the speed."};
  app.add_option("--model", options.model,
                 absl::StrCat("Hugging Face folder, or random weights of the shapes of ",
                              absl::StrJoin(bench::ShapeNames(), ", ")))
      ->required();
  app.add_option("--layers", options.layers, "Of a model by name; 0: all")->check(CLI::Range(0, 1000));
  app.add_option("--sequence-length", options.sequence_length)->check(CLI::Range(2, 1 << 20));
  app.add_option("--batch-size", options.batch_size)->check(CLI::Range(1, 1 << 16));
  app.add_option("--steps", options.steps, "After one that warms up")->check(CLI::Range(1, 1 << 20));
  app.add_option("--lora-r", options.lora_r)->check(CLI::Range(1, 4096));
  app.add_option("--threads", options.threads, "0: one a core")->check(CLI::Range(0, 1024));
  app.add_option("--device", options.device)->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--dtype", options.dtype)->check(CLI::IsMember({"float32", "bfloat16"}));
  app.add_flag("--deterministic,!--no-deterministic", options.deterministic, "The same bits from every run (default)");
  app.add_option("--gradient-checkpointing", options.checkpointing, "auto: where memory wants it")
      ->check(CLI::IsMember({"auto", "true", "false"}));
  app.add_flag("--floor", options.floor, "Also times the frozen model's products and attention alone (GPU)");
  app.add_option("--trace", options.trace, "Writes one more step's kernels there, as a Chrome trace");
  app.add_flag("--json", options.json, "One JSON object");
  CLI11_PARSE(app, argc, argv);
  const absl::StatusOr<nlohmann::json> result = Run(options);
  if (!result.ok()) {
    std::fprintf(stderr, "bench-train: %s\n", std::string(result.status().message()).c_str());
    return 1;
  }
  if (options.json) {
    std::printf("%s\n", result->dump().c_str());
    return 0;
  }
  const char* peak = result->contains("peak_device_bytes") ? "peak_device_bytes" : "peak_rss_bytes";
  std::printf("%.1f tokens/s, loss %.4f, peak %.2f GB, first step after %.1f s, %d threads\n",
              (*result)["tokens_per_second"].get<double>(), (*result)["loss"].get<double>(),
              (*result)[peak].get<double>() / 1e9, (*result)["first_step_seconds"].get<double>(),
              (*result)["threads"].get<int>());
  if (options.floor) std::printf("%.3f of the floor\n", (*result)["of_floor"].get<double>());
  return 0;
}

}  // namespace
}  // namespace retort

int main(int argc, char** argv) { return retort::Main(argc, argv); }
