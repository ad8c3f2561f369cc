#include "teacher_gen/score_command.h"

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/status.h"
#include "model/generation/scoring.h"
#include "teacher_gen/jsonl.h"
#include "teacher_gen/model_flags.h"

namespace retort {
namespace {

// Tokens that are scored together: enough to fill passes.
constexpr size_t kBatchTokens = 4096;

absl::Status Run(const ModelFlags& flags, OrderedOutput& output) {
  ASSIGN_OR_RETURN(const std::unique_ptr<RankGroup> ranks, StartRanks(flags));
  ASSIGN_OR_RETURN(const std::vector<std::string> lines, ReadInput(flags, ranks.get()));
  ModelOptions wanted = flags.model;
  wanted.tokenizer_optional = true;
  ASSIGN_OR_RETURN(LoadedModel model, LoadModel(wanted));
  ContextWarning context(flags.model.tensor_parallel_rank == 0 ? "score" : "", model.weights.config.context_length());
  ASSIGN_OR_RETURN(auto scorer, Scorer::Create(std::move(model.weights), model.compute_dtype, /*beyond_context=*/true,
                                               ranks == nullptr ? nullptr : ranks->tensors()));

  LineProgress progress("score", flags.model.tensor_parallel_rank == 0 ? static_cast<int64_t>(lines.size()) : 0);
  std::vector<std::vector<int32_t>> batch;
  std::vector<int64_t> indices;
  size_t batch_tokens = 0;
  int64_t tokens = 0;
  const auto run = [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const auto scores, scorer->Score(batch));
    for (size_t i = 0; i < batch.size(); ++i) {
      nlohmann::json logprobs = nlohmann::json::array();
      for (size_t t = 0; t < scores[i].size(); ++t)
        logprobs.push_back(t == 0 ? nlohmann::json(nullptr) : nlohmann::json(scores[i][t]));
      RETURN_IF_ERROR(output.Put(indices[i], {{"token_ids", batch[i]}, {"logprobs", std::move(logprobs)}}));
    }
    tokens += static_cast<int64_t>(batch_tokens);
    batch.clear();
    indices.clear();
    batch_tokens = 0;
    progress.Update(output.done(), tokens);
    return absl::OkStatus();
  };
  for (size_t index = 0; index < lines.size(); ++index) {
    absl::StatusOr<std::vector<int32_t>> ids = LineToTokens(model.tokenizer.get(), lines[index], false);
    absl::Status status = ids.status();
    if (status.ok()) status = scorer->Check(*ids);
    if (!status.ok()) {
      RETURN_IF_ERROR(output.PutError(static_cast<int64_t>(index), status));
      continue;
    }
    context.Saw(static_cast<int64_t>(ids->size()));
    batch_tokens += ids->size();
    batch.push_back(*std::move(ids));
    indices.push_back(static_cast<int64_t>(index));
    if (batch_tokens >= kBatchTokens) RETURN_IF_ERROR(run());
  }
  RETURN_IF_ERROR(run());
  return output.Finish();
}

}  // namespace

int ScoreCommand(int argc, char** argv) {
  CLI::App app("Gives each token's log-probability after those before it.", "distctl score");
  ModelFlags flags;
  AddModelFlags(app, flags);
  if (const int code = ParseModelFlags(app, flags, argc, argv); code >= 0) return code;
  OrderedOutput output(OutputOf(flags));
  const absl::Status status = Run(flags, output);
  return ExitCode("score", flags, status, output.errors());
}

}  // namespace retort
