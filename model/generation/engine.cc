#include "model/generation/engine.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"
#include "model/generation/decoder.h"
#include "model/generation/sampler.h"

namespace retort {
namespace {

using internal::Decoder;
using internal::Segment;

struct Sequence {
  GenerationRequest request;
  std::vector<int32_t> tokens;  // prompt, then what was written
  int64_t cached = 0;           // tokens whose keys and values are in the slot
  int64_t slot = -1;

  int64_t written() const { return static_cast<int64_t>(tokens.size() - request.prompt.size()); }
};

class Engine final : public GenerationEngine {
 public:
  Engine(std::unique_ptr<Decoder> decoder, const EngineOptions& options)
      : decoder_(std::move(decoder)), options_(options) {
    for (int64_t slot = options_.max_batch_size - 1; slot >= 0; --slot) free_slots_.push_back(slot);
  }

  absl::Status Add(GenerationRequest request) override;
  absl::StatusOr<std::vector<GenerationResult>> Step() override;
  absl::Status Remove(uint64_t id) override;
  int64_t active() const override { return static_cast<int64_t>(waiting_.size() + running_.size()); }
  std::vector<GenerationResult> Snapshot() const override;

 private:
  bool IsEos(int32_t token) const {
    const auto& ids = decoder_->config().eos_token_ids;
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  }
  // Why the sequence is over; empty: it is not.
  std::string FinishReason(const Sequence& sequence) const;
  absl::Status Admit();
  // Computes what is not cached of every running sequence, and draws its next token.
  absl::Status Advance();
  absl::Status Draw(const std::vector<Sequence*>& sequences, const at::Tensor& hidden);
  static GenerationResult Result(const Sequence& sequence, std::string finish_reason);

  const std::unique_ptr<Decoder> decoder_;
  const EngineOptions options_;
  std::deque<Sequence> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;
  std::vector<int64_t> free_slots_;
  internal::SamplerScratch scratch_;
};

GenerationResult Engine::Result(const Sequence& sequence, std::string finish_reason) {
  GenerationResult result;
  result.id = sequence.request.id;
  result.token_ids.assign(sequence.tokens.begin() + static_cast<int64_t>(sequence.request.prompt.size()),
                          sequence.tokens.end());
  result.finish_reason = std::move(finish_reason);
  return result;
}

absl::Status Engine::Add(GenerationRequest request) {
  const int64_t vocabulary = decoder_->config().vocab_size;
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  if (prompt_tokens == 0) return absl::InvalidArgumentError("the prompt is empty");
  if (prompt_tokens >= options_.max_sequence_length) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt has ", prompt_tokens, " tokens; the model's context of ",
                                                   options_.max_sequence_length, " leaves no room for an answer"));
  }
  if (request.sampling.max_tokens < 1) return absl::InvalidArgumentError("max_tokens must be at least 1");
  if (request.sampling.top_p <= 0.0 || request.sampling.top_p > 1.0)
    return absl::InvalidArgumentError("top_p must be above 0 and at most 1");
  if (!(request.sampling.temperature >= 0.0)) return absl::InvalidArgumentError("temperature must be at least 0");
  for (const auto* ids : {&request.prompt, &request.generated}) {
    for (const int32_t id : *ids) {
      if (id < 0 || id >= vocabulary) {
        return absl::InvalidArgumentError(
            absl::StrCat("token id ", id, " is outside the model's vocabulary of ", vocabulary));
      }
    }
  }
  Sequence sequence;
  sequence.tokens = request.prompt;
  sequence.tokens.insert(sequence.tokens.end(), request.generated.begin(), request.generated.end());
  if (static_cast<int64_t>(sequence.tokens.size()) > options_.max_sequence_length) {
    return absl::InvalidArgumentError("prompt and earlier tokens are longer than the model's context");
  }
  sequence.request = std::move(request);
  waiting_.push_back(std::move(sequence));
  return absl::OkStatus();
}

std::string Engine::FinishReason(const Sequence& sequence) const {
  if (sequence.written() > 0 && !sequence.request.sampling.ignore_eos && IsEos(sequence.tokens.back())) return "stop";
  if (sequence.written() >= sequence.request.sampling.max_tokens ||
      static_cast<int64_t>(sequence.tokens.size()) >= options_.max_sequence_length) {
    return "length";
  }
  return "";
}

absl::Status Engine::Admit() {
  while (!waiting_.empty() && !free_slots_.empty()) {
    auto sequence = std::make_unique<Sequence>(std::move(waiting_.front()));
    waiting_.pop_front();
    // The last token that is drawn needs no place in the cache.
    const int64_t most =
        std::min<int64_t>(options_.max_sequence_length, static_cast<int64_t>(sequence->request.prompt.size()) +
                                                            sequence->request.sampling.max_tokens);
    RETURN_IF_ERROR(decoder_->Reserve(free_slots_.back(), most));
    sequence->slot = free_slots_.back();
    free_slots_.pop_back();
    running_.push_back(std::move(sequence));
  }
  return absl::OkStatus();
}

absl::Status Engine::Draw(const std::vector<Sequence*>& sequences, const at::Tensor& hidden) {
  ASSIGN_OR_RETURN(const at::Tensor logits, decoder_->Logits(hidden));
  const int64_t vocabulary = decoder_->config().vocab_size;
  const bool greedy = std::all_of(sequences.begin(), sequences.end(),
                                  [](const Sequence* sequence) { return sequence->request.sampling.temperature <= 0; });
  if (greedy && !logits.is_cpu()) {
    const at::Tensor best = logits.argmax(-1).to(at::kCPU);
    for (size_t i = 0; i < sequences.size(); ++i)
      sequences[i]->tokens.push_back(static_cast<int32_t>(best.const_data_ptr<int64_t>()[i]));
    return absl::OkStatus();
  }
  const at::Tensor rows = logits.is_cpu() ? logits : logits.to(at::kCPU);
  for (size_t i = 0; i < sequences.size(); ++i) {
    Sequence& sequence = *sequences[i];
    const float* row = rows.const_data_ptr<float>() + static_cast<int64_t>(i) * rows.stride(0);
    ASSIGN_OR_RETURN(const int32_t token,
                     internal::SampleToken(absl::MakeConstSpan(row, static_cast<size_t>(vocabulary)),
                                           sequence.request.sampling.temperature, sequence.request.sampling.top_p,
                                           sequence.request.random_key, sequence.written(), scratch_));
    sequence.tokens.push_back(token);
  }
  return absl::OkStatus();
}

absl::Status Engine::Advance() {
  std::vector<Segment> segments;
  std::vector<Sequence*> finishing;  // their last row is in the pass
  int64_t left = decoder_->max_tokens_per_pass();
  const auto run = [&]() -> absl::Status {
    if (segments.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(const at::Tensor hidden, decoder_->Forward(segments));
    if (!finishing.empty()) RETURN_IF_ERROR(Draw(finishing, hidden));
    segments.clear();
    finishing.clear();
    left = decoder_->max_tokens_per_pass();
    return absl::OkStatus();
  };
  for (const auto& sequence : running_) {
    const auto length = static_cast<int64_t>(sequence->tokens.size());
    // Under another rotation nothing that is cached holds.
    const RopeConfig& rope = decoder_->config().rope;
    if (rope.UsesLongFactors(sequence->cached) != rope.UsesLongFactors(length)) sequence->cached = 0;
    while (sequence->cached < length) {
      const int64_t count = std::min(left, length - sequence->cached);
      const bool last = sequence->cached + count == length;
      segments.push_back({sequence->slot, sequence->cached,
                          absl::MakeConstSpan(sequence->tokens)
                              .subspan(static_cast<size_t>(sequence->cached), static_cast<size_t>(count)),
                          last ? Segment::Wanted::kLast : Segment::Wanted::kNone, length});
      sequence->cached += count;
      left -= count;
      if (last) finishing.push_back(sequence.get());
      if (left == 0) RETURN_IF_ERROR(run());
      if (last) break;
    }
  }
  return run();
}

absl::StatusOr<std::vector<GenerationResult>> Engine::Step() {
  RETURN_IF_ERROR(Admit());
  std::vector<GenerationResult> ended;
  const auto take_ended = [&] {
    std::erase_if(running_, [&](const std::unique_ptr<Sequence>& sequence) {
      std::string reason = FinishReason(*sequence);
      if (reason.empty()) return false;
      ended.push_back(Result(*sequence, std::move(reason)));
      free_slots_.push_back(sequence->slot);
      return true;
    });
  };
  take_ended();  // what was resumed may have been over already
  RETURN_IF_ERROR(Advance());
  take_ended();
  return ended;
}

absl::Status Engine::Remove(uint64_t id) {
  const auto waits = std::find_if(waiting_.begin(), waiting_.end(),
                                  [&](const Sequence& sequence) { return sequence.request.id == id; });
  if (waits != waiting_.end()) {
    waiting_.erase(waits);
    return absl::OkStatus();
  }
  const auto runs =
      std::find_if(running_.begin(), running_.end(), [&](const auto& sequence) { return sequence->request.id == id; });
  if (runs == running_.end()) return absl::NotFoundError(absl::StrCat("no sequence ", id));
  free_slots_.push_back((*runs)->slot);
  running_.erase(runs);
  return absl::OkStatus();
}

std::vector<GenerationResult> Engine::Snapshot() const {
  std::vector<GenerationResult> snapshot;
  for (const auto& sequence : running_) snapshot.push_back(Result(*sequence, ""));
  return snapshot;
}

}  // namespace

absl::StatusOr<std::unique_ptr<GenerationEngine>> GenerationEngine::Create(ModelWeights weights,
                                                                           c10::ScalarType compute_dtype,
                                                                           const EngineOptions& options,
                                                                           TensorGroup* group) {
  EngineOptions filled = options;
  if (filled.max_batch_size < 1) return absl::InvalidArgumentError("max_batch_size must be at least 1");
  const int64_t context = weights.config.context_length();
  if (filled.max_sequence_length <= 0 || (filled.max_sequence_length > context && !filled.beyond_context)) {
    filled.max_sequence_length = context;
  }
  ASSIGN_OR_RETURN(auto decoder, Decoder::Create(std::move(weights), compute_dtype, filled.max_batch_size, group));
  return std::make_unique<Engine>(std::move(decoder), filled);
}

}  // namespace retort
