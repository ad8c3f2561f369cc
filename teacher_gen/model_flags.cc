#include "teacher_gen/model_flags.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "absl/strings/numbers.h"
#include "common/status.h"
#include "model/device.h"
#include "model/parallel/shard.h"
#include "teacher_gen/jsonl.h"

namespace retort {

void AddModelFlags(CLI::App& app, ModelFlags& flags) {
  app.add_option("--model", flags.model.model, "Hugging Face model folder, or GGUF file")->required();
  app.add_option("--adapter", flags.model.adapter, "PEFT adapter folder, merged into the weights");
  app.add_option("--dtype", flags.model.dtype, "of the computation; default: bfloat16 on a GPU, float32 on a CPU")
      ->check(CLI::IsMember({"float32", "bfloat16"}));
  app.add_option("--device", flags.model.device, "default: a GPU when there is one")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_flag("--load-in-4bit", flags.model.load_in_4bit, "keep linear modules in 4 bits (NF4)");
  app.add_flag("--load-in-8bit", flags.model.load_in_8bit, "keep linear modules in 8 bits")->excludes("--load-in-4bit");
  app.add_option("--input", flags.input, "JSONL file, or - for standard input")->required();
  app.add_option("--output", flags.output, "JSONL file, or - for standard output")->required();
  app.add_option("--threads", flags.threads, "CPU threads; default: as many as cores")->check(CLI::Range(1, 1024));
  app.add_option("--tensor-parallel-size", flags.model.tensor_parallel_size,
                 "processes that share the model: on GPUs one each, else on this machine's cores")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option(kRankFlag, flags.model.tensor_parallel_rank)->group("");  // the program's own
}

CLI::Validator SeedCheck() {
  return CLI::Validator(
      [](std::string& text) {
        uint64_t seed = 0;
        return absl::SimpleAtoi(text, &seed) ? "" : text + " is no whole number from 0 to 2^64 - 1";
      },
      "UINT64");
}

CLI::Validator TemperatureCheck() {
  return CLI::Validator(
      [](std::string& text) {
        double value = 0.0;
        const bool good = absl::SimpleAtod(text, &value) && value >= 0.0 && value <= 100.0;  // NaN is neither
        return good ? "" : text + " is no number from 0 to 100";
      },
      "FLOAT in [0 - 100]");
}

int ParseModelFlags(CLI::App& app, ModelFlags& flags, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const int ranks = flags.model.tensor_parallel_size;
  if (flags.model.tensor_parallel_rank < 0 || flags.model.tensor_parallel_rank >= ranks) {
    std::fprintf(stderr, "%s is for the program's own use\n", kRankFlag);
    return 2;
  }
  if (flags.threads == 0 && ranks > 1) {
    flags.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / ranks);
  }
  if (flags.threads > 0) SetThreads(flags.threads);
  flags.argv.assign(argv, argv + argc);
  return -1;
}

absl::StatusOr<std::unique_ptr<RankGroup>> StartRanks(const ModelFlags& flags) {
  const ModelOptions& model = flags.model;
  if (model.tensor_parallel_size == 1) return nullptr;
  // What is wrong with the model is said once, before there are others to say it too.
  if (std::error_code error; std::filesystem::is_directory(model.model, error)) {
    ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(model.model));
    RETURN_IF_ERROR(ShardConfig(config, model.tensor_parallel_rank, model.tensor_parallel_size).status());
  }
  ASSIGN_OR_RETURN(const c10::Device device, ChooseDevice(model.device.empty() ? "auto" : model.device));
  if (device.is_cuda() && model.tensor_parallel_rank == 0 && CudaDevices() < model.tensor_parallel_size) {
    std::fprintf(stderr, "warning: %d ranks share %d GPU(s): that is for trying it out, and slower than one rank\n",
                 model.tensor_parallel_size, CudaDevices());
  }
  return RankGroup::Start(model.tensor_parallel_rank, model.tensor_parallel_size, device.is_cuda(), flags.argv);
}

absl::StatusOr<std::vector<std::string>> ReadInput(const ModelFlags& flags, RankGroup* ranks) {
  std::vector<std::string> lines;
  if (flags.model.tensor_parallel_rank == 0) {
    ASSIGN_OR_RETURN(lines, ReadLines(flags.input));
  }
  if (ranks != nullptr) RETURN_IF_ERROR(ranks->Broadcast(lines));
  return lines;
}

int ExitCode(const char* verb, const ModelFlags& flags, const absl::Status& status, int64_t line_errors) {
  if (status.ok()) return line_errors > 0 ? 1 : 0;
  const int rank = flags.model.tensor_parallel_rank;
  const std::string message(status.message());
  if (rank == 0) {
    std::fprintf(stderr, "%s: %s\n", verb, message.c_str());
  } else if (!absl::IsUnavailable(status) && !absl::IsAborted(status)) {
    std::fprintf(stderr, "%s: rank %d: %s\n", verb, rank, message.c_str());
  }
  return 1;
}

std::string OutputOf(const ModelFlags& flags) {
  return flags.model.tensor_parallel_rank == 0 ? flags.output : std::string();
}

}  // namespace retort
