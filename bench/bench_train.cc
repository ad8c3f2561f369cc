// LoRA training speed of one process: the counterpart of bench/peers/train_peft_cpu.py.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "common/log.h"
#include "common/status.h"
#include "model/device.h"
#include "model/lora.h"
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
  int64_t lora_r = 16;
  int threads = 0;
  bool json = false;
};

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

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

// torch.optim.AdamW without weight decay.
class AdamW {
 public:
  explicit AdamW(const at::Tensor& parameters)
      : mean_(at::zeros_like(parameters)), square_(at::zeros_like(parameters)) {}

  void Step(at::Tensor& parameters, const at::Tensor& gradient) {
    ++steps_;
    mean_.lerp_(gradient, 0.1);
    square_.mul_(0.999).addcmul_(gradient, gradient, 0.001);
    const double rate = 2e-4 / (1.0 - std::pow(0.9, steps_));
    parameters.addcdiv_(mean_, (square_.sqrt() / std::sqrt(1.0 - std::pow(0.999, steps_))).add_(1e-8), -rate);
  }

 private:
  at::Tensor mean_, square_;
  double steps_ = 0.0;
};

absl::StatusOr<nlohmann::json> Run(const Options& options) {
  ASSIGN_OR_RETURN(const c10::Device device, ChooseDevice(options.device));
  SetThreads(options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency()));
  const c10::ScalarType dtype = options.dtype == "bfloat16" ? at::kBFloat16 : at::kFloat;
  ASSIGN_OR_RETURN(ModelWeights weights, LoadWeights(options.model, dtype, device));
  const ModelConfig config = weights.config;
  const LoraConfig lora{
      .r = options.lora_r, .lora_alpha = 2.0 * static_cast<double>(options.lora_r), .target_modules = {"all-linear"}};
  ASSIGN_OR_RETURN(const LoraAdapter adapter, InitLora(config, lora, /*seed=*/0));
  ASSIGN_OR_RETURN(const std::unique_ptr<TrainingModel> model,
                   TrainingModel::Create(std::move(weights), adapter, {.compute_dtype = dtype}));
  const MicroBatch batch = RandomBatch(options, config.vocab_size);
  const double trained = static_cast<double>(options.batch_size * (options.sequence_length - 1));
  at::Tensor gradient = at::zeros_like(model->flat_parameters());
  AdamW optimizer(model->flat_parameters());
  std::vector<double> seconds;
  double loss = 0.0;
  for (int64_t step = 0; step <= options.steps; ++step) {  // the first warms up
    const double start = Seconds();
    ASSIGN_OR_RETURN(const LossSum sum,
                     model->ForwardBackward(batch, 1.0 / trained, static_cast<uint64_t>(step), gradient));
    optimizer.Step(model->flat_parameters(), gradient);
    loss = sum.loss / static_cast<double>(sum.trained_tokens);
    if (device.is_cuda()) model->flat_parameters()[0].item<float>();  // waits for the device
    if (step > 0) seconds.push_back(Seconds() - start);
  }
  std::vector<double> sorted = seconds;
  std::sort(sorted.begin(), sorted.end());
  const size_t middle = sorted.size() / 2;
  const double median = sorted.size() % 2 == 1 ? sorted[middle] : 0.5 * (sorted[middle - 1] + sorted[middle]);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return nlohmann::json{{"tokens_per_second", static_cast<double>(batch.input_ids.size()) / median},
                        {"peak_rss_bytes", int64_t{usage.ru_maxrss} * 1024},
                        {"loss", loss},
                        {"step_seconds", seconds},
                        {"threads", at::get_num_threads()}};
}

int Main(int argc, char** argv) {
  OpenCudaIfPresent();
  InitLogging("bench-train");
  Options options;
  CLI::App app{"Trains a LoRA adapter on random tokens, every position trained, and prints the speed."};
  app.add_option("--model", options.model, "Hugging Face folder")->required();
  app.add_option("--sequence-length", options.sequence_length)->check(CLI::Range(2, 1 << 20));
  app.add_option("--batch-size", options.batch_size)->check(CLI::Range(1, 1 << 16));
  app.add_option("--steps", options.steps, "After one that warms up")->check(CLI::Range(1, 1 << 20));
  app.add_option("--lora-r", options.lora_r)->check(CLI::Range(1, 4096));
  app.add_option("--threads", options.threads, "0: one a core")->check(CLI::Range(0, 1024));
  app.add_option("--device", options.device)->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--dtype", options.dtype)->check(CLI::IsMember({"float32", "bfloat16"}));
  app.add_flag("--json", options.json, "One JSON object");
  CLI11_PARSE(app, argc, argv);
  const absl::StatusOr<nlohmann::json> result = Run(options);
  if (!result.ok()) {
    std::fprintf(stderr, "bench-train: %s\n", std::string(result.status().message()).c_str());
    return 1;
  }
  if (options.json) {
    std::printf("%s\n", result->dump().c_str());
  } else {
    std::printf("%.1f tokens/s, loss %.4f, peak %.2f GiB, %d threads\n", (*result)["tokens_per_second"].get<double>(),
                (*result)["loss"].get<double>(), (*result)["peak_rss_bytes"].get<double>() / (1 << 30),
                (*result)["threads"].get<int>());
  }
  return 0;
}

}  // namespace
}  // namespace retort

int main(int argc, char** argv) { return retort::Main(argc, argv); }
