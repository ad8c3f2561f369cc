#include "teacher_gen/generate_command.h"

#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "common/hash.h"
#include "common/status.h"
#include "model/generation/engine.h"
#include "teacher_gen/jsonl.h"
#include "teacher_gen/model_flags.h"
#include "teacher_gen/sample_keys.h"
#include "teacher_gen/trace_text.h"

namespace retort {
namespace {

struct Options {
  ModelFlags flags;
  int64_t max_tokens = 256;
  double temperature = 0.0;
  double top_p = 1.0;
  uint64_t seed = 0;
  int64_t n = 1;
  bool ignore_eos = false;
  int64_t batch_size = 32;
};

// Bounds a sequence's memory; a model's own context is only warned of.
constexpr int64_t kMaxSequenceTokens = int64_t{1} << 26;

// What one input line has got so far: n samples, each a JSON field's value once it is there.
struct LineState {
  std::vector<nlohmann::json> token_ids, text, finish_reason;
  int64_t missing = 0;
  int64_t prompt_tokens = 0;
};

absl::Status Run(const Options& options, OrderedOutput& output) {
  ASSIGN_OR_RETURN(const std::unique_ptr<RankGroup> ranks, StartRanks(options.flags));
  ASSIGN_OR_RETURN(const std::vector<std::string> lines, ReadInput(options.flags, ranks.get()));
  ModelOptions wanted = options.flags.model;
  wanted.tokenizer_optional = true;
  wanted.eos_from_tokenizer = false;  // as transformers' generate()
  ASSIGN_OR_RETURN(LoadedModel model, LoadModel(wanted));
  std::optional<TraceText> trace_text;
  if (model.tokenizer != nullptr) trace_text.emplace(*model.tokenizer);
  EngineOptions engine_options;
  engine_options.max_batch_size = options.batch_size;
  engine_options.max_sequence_length = kMaxSequenceTokens;
  engine_options.beyond_context = true;
  const bool first = options.flags.model.tensor_parallel_rank == 0;
  ContextWarning context(first ? "generate" : "", model.weights.config.context_length());
  ASSIGN_OR_RETURN(auto engine, GenerationEngine::Create(std::move(model.weights), model.compute_dtype, engine_options,
                                                         ranks == nullptr ? nullptr : ranks->tensors()));

  const auto total = static_cast<int64_t>(lines.size());
  LineProgress progress("generate", first ? total : 0);
  std::map<int64_t, LineState> open;
  int64_t next = 0;
  int64_t tokens = 0;
  while (next < total || engine->active() > 0) {
    while (next < total && engine->active() < 2 * options.batch_size) {
      const int64_t index = next++;
      absl::StatusOr<std::vector<int32_t>> prompt =
          LineToTokens(model.tokenizer.get(), lines[static_cast<size_t>(index)], true);
      absl::Status status = prompt.status();
      for (int64_t sample = 0; sample < options.n && status.ok(); ++sample) {
        GenerationRequest request;
        request.id = static_cast<uint64_t>(index * options.n + sample);
        request.prompt = *prompt;
        request.sampling = {options.temperature, options.top_p, options.max_tokens, options.ignore_eos};
        request.random_key = RandomKeyOfPrompt(options.seed, *prompt, sample);
        status = engine->Add(std::move(request));
      }
      if (!status.ok()) {
        RETURN_IF_ERROR(output.PutError(index, status));
        continue;
      }
      LineState& line = open[index];
      line.missing = options.n;
      line.prompt_tokens = static_cast<int64_t>(prompt->size());
      for (auto* field : {&line.token_ids, &line.text, &line.finish_reason})
        field->resize(static_cast<size_t>(options.n));
    }
    if (engine->active() == 0) continue;
    ASSIGN_OR_RETURN(const std::vector<GenerationResult> ended, engine->Step());
    for (const GenerationResult& result : ended) {
      const auto index = static_cast<int64_t>(result.id) / options.n;
      const auto sample = static_cast<size_t>(static_cast<int64_t>(result.id) % options.n);
      nlohmann::json text;  // null without a tokenizer
      if (trace_text.has_value()) {
        ASSIGN_OR_RETURN(text, trace_text->Decode(result.token_ids));
      }
      tokens += static_cast<int64_t>(result.token_ids.size());
      context.Saw(open[index].prompt_tokens + static_cast<int64_t>(result.token_ids.size()));
      LineState& line = open[index];
      line.token_ids[sample] = result.token_ids;
      line.text[sample] = std::move(text);
      line.finish_reason[sample] = result.finish_reason;
      if (--line.missing > 0) continue;
      const auto field = [&](std::vector<nlohmann::json>& values) {
        return options.n == 1 ? std::move(values[0]) : nlohmann::json(std::move(values));
      };
      RETURN_IF_ERROR(output.Put(index, {{"token_ids", field(line.token_ids)},
                                         {"text", field(line.text)},
                                         {"finish_reason", field(line.finish_reason)}}));
      open.erase(index);
    }
    progress.Update(output.done(), tokens);
  }
  return output.Finish();
}

}  // namespace

int GenerateCommand(int argc, char** argv) {
  CLI::App app("Lets a model go on from each line's prompt.", "distctl generate");
  Options options;
  AddModelFlags(app, options.flags);
  app.add_option("--max-tokens", options.max_tokens, "new tokens at most")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  app.add_option("--temperature", options.temperature, "0 is greedy")->check(TemperatureCheck())->capture_default_str();
  app.add_option("--top-p", options.top_p, "mass of the nucleus")->check(CLI::Range(1e-9, 1.0))->capture_default_str();
  app.add_option("--seed", options.seed)->check(SeedCheck())->capture_default_str();
  app.add_option("--n", options.n, "samples of each prompt")->check(CLI::Range(1, 1 << 16))->capture_default_str();
  app.add_flag("--ignore-eos", options.ignore_eos, "go on to --max-tokens");
  app.add_option("--batch-size", options.batch_size, "sequences decoded together")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  if (const int code = ParseModelFlags(app, options.flags, argc, argv); code >= 0) return code;
  OrderedOutput output(OutputOf(options.flags));
  const absl::Status status = Run(options, output);
  return ExitCode("generate", options.flags, status, output.errors());
}

}  // namespace retort
