// Speed of batched greedy generation, with the memory bandwidth of the same minute beside it: decoding one sequence
// reads every weight once a token, so bandwidth / bytes of weights bounds its rate.
#include <ATen/Parallel.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "common/status.h"
#include "model/device.h"
#include "model/generation/engine.h"
#include "model/weights.h"

namespace retort {
namespace {

struct Options {
  std::string model;
  int64_t prompt_tokens = 64;
  int64_t new_tokens = 64;
  int64_t batch_size = 1;
  int threads = 0;
  std::string dtype = "auto";
  std::string device = "auto";
  double temperature = 0.0;
  int repeats = 3;
  bool json = false;
};

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Bytes per second that all threads together read from memory; the best of three passes over 256 MiB.
double ReadBandwidth(int threads) {
  std::vector<uint64_t> words((size_t{256} << 20) / sizeof(uint64_t), 1);
  double best = 0.0;
  for (int pass = 0; pass < 3; ++pass) {
    std::vector<uint64_t> sums(static_cast<size_t>(threads) * 8);
    std::vector<std::thread> readers;
    const double start = Now();
    for (int t = 0; t < threads; ++t) {
      readers.emplace_back([&, t] {
        const size_t count = words.size() / static_cast<size_t>(threads) / 8 * 8;
        const uint64_t* from = words.data() + count * static_cast<size_t>(t);
        uint64_t sum[8] = {};
        for (size_t i = 0; i < count; i += 8)
          for (size_t lane = 0; lane < 8; ++lane) sum[lane] ^= from[i + lane];
        for (size_t lane = 0; lane < 8; ++lane) sums[static_cast<size_t>(t) * 8 + lane] = sum[lane];
      });
    }
    for (auto& reader : readers) reader.join();
    best = std::max(best, static_cast<double>(words.size() * sizeof(uint64_t)) / (Now() - start));
    words[0] += sums[0];
  }
  return best;
}

int64_t Bytes(const ModelWeights& weights) {
  int64_t bytes = static_cast<int64_t>(weights.lm_head.nbytes());
  for (const LayerWeights& layer : weights.layers) {
    for (const at::Tensor* weight : {&layer[kQ].weight, &layer[kK].weight, &layer[kV].weight, &layer[kO].weight,
                                     &layer[kGate].weight, &layer[kUp].weight, &layer[kDown].weight})
      bytes += static_cast<int64_t>(weight->nbytes());
  }
  return bytes;
}

absl::StatusOr<nlohmann::json> Measure(const Options& options) {
  ASSIGN_OR_RETURN(const c10::Device device, ChooseDevice(options.device));
  if (options.threads > 0) SetThreads(options.threads);
  const int threads = at::get_num_threads();
  std::string dtype = options.dtype;
  if (dtype == "auto") dtype = device.is_cpu() ? "float32" : "bfloat16";
  const auto compute_dtype = dtype == "bfloat16" ? c10::ScalarType::BFloat16 : c10::ScalarType::Float;
  std::optional<c10::ScalarType> stored;
  if (!device.is_cpu() || dtype == "bfloat16") stored = compute_dtype;
  const double load_start = Now();
  ASSIGN_OR_RETURN(ModelWeights weights, LoadWeights(options.model, stored, device));
  // The last copies may still be under way.
  if (!device.is_cpu()) (void)weights.final_norm.to(at::kCPU);
  const double load_seconds = Now() - load_start;
  const int64_t vocabulary = weights.config.vocab_size;
  const int64_t weight_bytes = Bytes(weights);
  EngineOptions engine_options;
  engine_options.max_batch_size = options.batch_size;
  ASSIGN_OR_RETURN(auto engine, GenerationEngine::Create(std::move(weights), compute_dtype, engine_options));

  nlohmann::json best;
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    for (int64_t i = 0; i < options.batch_size; ++i) {
      GenerationRequest request;
      request.id = static_cast<uint64_t>(i);
      request.random_key = request.id;
      for (int64_t t = 0; t < options.prompt_tokens; ++t)
        request.prompt.push_back(static_cast<int32_t>((100 + 7919 * t + 104729 * i) % vocabulary));
      request.sampling.max_tokens = options.new_tokens;
      request.sampling.temperature = options.temperature;
      request.sampling.top_p = options.temperature > 0 ? 0.95 : 1.0;
      request.sampling.ignore_eos = true;
      RETURN_IF_ERROR(engine->Add(std::move(request)));
    }
    const double start = Now();
    RETURN_IF_ERROR(engine->Step().status());
    const double prefilled = Now();
    while (engine->active() > 0) RETURN_IF_ERROR(engine->Step().status());
    const double end = Now();
    const auto new_tokens = static_cast<double>(options.batch_size * options.new_tokens);
    const double rate = new_tokens / (end - start);
    if (!best.is_null() && best["tokens_per_second"].get<double>() >= rate) continue;
    best["tokens_per_second"] = rate;
    best["prefill_tokens_per_second"] =
        static_cast<double>(options.batch_size * options.prompt_tokens) / (prefilled - start);
    best["decode_tokens_per_second"] =
        options.new_tokens > 1 ? static_cast<double>(options.batch_size * (options.new_tokens - 1)) / (end - prefilled)
                               : 0.0;
  }
  if (device.is_cpu()) {
    const double bandwidth = ReadBandwidth(threads);
    best["read_bandwidth_bytes_per_second"] = bandwidth;
    best["weight_bytes"] = weight_bytes;
    best["bandwidth_bound_steps_per_second"] = bandwidth / static_cast<double>(weight_bytes);
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  best["peak_rss_bytes"] = static_cast<int64_t>(usage.ru_maxrss) * 1024;
  best["model"] = options.model;
  best["load_seconds"] = load_seconds;
  best["device"] = device.str();
  best["dtype"] = dtype;
  best["threads"] = threads;
  best["batch_size"] = options.batch_size;
  best["prompt_tokens"] = options.prompt_tokens;
  best["new_tokens"] = options.new_tokens;
  best["temperature"] = options.temperature;
  best["repeats"] = options.repeats;
  return best;
}

int Main(int argc, char** argv) {
  OpenCudaIfPresent();
  Options options;
  CLI::App app("Measures batched generation; prints the best of --repeats runs.");
  app.add_option("--model", options.model, "HF folder")->required();
  app.add_option("--prompt-tokens", options.prompt_tokens)->check(CLI::Range(1, 1 << 20));
  app.add_option("--new-tokens", options.new_tokens)->check(CLI::Range(1, 1 << 20));
  app.add_option("--batch-size", options.batch_size)->check(CLI::Range(1, 4096));
  app.add_option("--threads", options.threads, "CPU threads; 0: as many as cores")->check(CLI::Range(0, 1024));
  app.add_option("--dtype", options.dtype)->check(CLI::IsMember({"auto", "float32", "bfloat16"}));
  app.add_option("--device", options.device)->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--temperature", options.temperature, "0: greedy; else with top_p 0.95")->check(CLI::Range(0.0, 10.0));
  app.add_option("--repeats", options.repeats)->check(CLI::Range(1, 100));
  app.add_flag("--json", options.json, "print one JSON object");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const auto result = Measure(options);
  if (!result.ok()) {
    std::fprintf(stderr, "bench-generate: %s\n", result.status().ToString().c_str());
    return 1;
  }
  if (options.json) {
    std::printf("%s\n", result->dump().c_str());
  } else {
    for (const auto& [key, value] : result->items()) std::printf("%-34s %s\n", key.c_str(), value.dump().c_str());
  }
  return 0;
}

}  // namespace
}  // namespace retort

int main(int argc, char** argv) { return retort::Main(argc, argv); }
