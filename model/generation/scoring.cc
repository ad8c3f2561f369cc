#include "model/generation/scoring.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "model/generation/decoder.h"

namespace retort {
namespace {

using internal::Segment;

constexpr int64_t kSlots = 64;
// Rows whose logits exist at once: with a vocabulary of 128k they take 48 MiB.
constexpr int64_t kLogitRows = 96;

}  // namespace

Scorer::Scorer(std::unique_ptr<internal::Decoder> decoder, bool beyond_context)
    : decoder_(std::move(decoder)), beyond_context_(beyond_context) {}
Scorer::~Scorer() = default;

absl::StatusOr<std::unique_ptr<Scorer>> Scorer::Create(ModelWeights weights, c10::ScalarType compute_dtype,
                                                       bool beyond_context, TensorGroup* group) {
  ASSIGN_OR_RETURN(auto decoder, internal::Decoder::Create(std::move(weights), compute_dtype, kSlots, group,
                                                           internal::Activations::kFloat32));
  return std::unique_ptr<Scorer>(new Scorer(std::move(decoder), beyond_context));
}

absl::Status Scorer::Check(absl::Span<const int32_t> tokens) const {
  const ModelConfig& config = decoder_->config();
  if (!beyond_context_ && static_cast<int64_t>(tokens.size()) > config.context_length()) {
    return absl::InvalidArgumentError(
        absl::StrCat(tokens.size(), " tokens are more than the model's context of ", config.context_length()));
  }
  for (const int32_t id : tokens) {
    if (id < 0 || id >= config.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", id, " is outside the model's vocabulary of ", config.vocab_size));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::vector<float>>> Scorer::Score(absl::Span<const std::vector<int32_t>> sequences) {
  const c10::InferenceMode inference;
  std::vector<std::vector<float>> scores;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const absl::Status valid = Check(sequences[i]);
    if (!valid.ok()) return WithContext(valid, absl::StrCat("sequence ", i));
    scores.emplace_back(sequences[i].size(), std::numeric_limits<float>::quiet_NaN());
  }

  // Row r of a pass predicts `targets[r]`, whose score goes to `places[r]`.
  std::vector<Segment> segments;
  std::vector<int64_t> targets;
  std::vector<float*> places;
  const auto run = [&]() -> absl::Status {
    if (segments.empty()) return absl::OkStatus();
    ASSIGN_OR_RETURN(const at::Tensor hidden, decoder_->Forward(segments));
    const at::Tensor target_ids = at::tensor(targets, at::kLong).to(hidden.device()).unsqueeze(1);
    for (int64_t row = 0; row < hidden.size(0); row += kLogitRows) {
      const int64_t rows = std::min(kLogitRows, hidden.size(0) - row);
      ASSIGN_OR_RETURN(const at::Tensor logits, decoder_->Logits(hidden.narrow(0, row, rows)));
      const at::Tensor chosen = logits.gather(1, target_ids.narrow(0, row, rows)).squeeze(1);
      const at::Tensor logprobs = (chosen - logits.logsumexp(1)).to(at::kCPU).contiguous();
      for (int64_t i = 0; i < rows; ++i) *places[static_cast<size_t>(row + i)] = logprobs.const_data_ptr<float>()[i];
    }
    segments.clear();
    targets.clear();
    places.clear();
    return absl::OkStatus();
  };
  const int64_t most = decoder_->max_tokens_per_pass();
  int64_t begun = 0;  // consecutive slots, so that the sequences of a pass have different ones
  for (size_t i = 0; i < sequences.size(); ++i) {
    const std::vector<int32_t>& tokens = sequences[i];
    // The last token predicts nothing.
    const int64_t length = static_cast<int64_t>(tokens.size()) - 1;
    if (length <= 0) continue;
    if (static_cast<int64_t>(segments.size()) == kSlots) RETURN_IF_ERROR(run());
    const int64_t slot = begun++ % kSlots;
    for (int64_t start = 0; start < length;) {
      if (start == 0) RETURN_IF_ERROR(decoder_->Reserve(slot, length));
      const int64_t count = std::min(length - start, most - static_cast<int64_t>(targets.size()));
      segments.push_back({slot, start,
                          absl::MakeConstSpan(tokens).subspan(static_cast<size_t>(start), static_cast<size_t>(count)),
                          Segment::Wanted::kAll, static_cast<int64_t>(tokens.size())});
      for (int64_t t = start + 1; t <= start + count; ++t) {
        targets.push_back(tokens[static_cast<size_t>(t)]);
        places.push_back(&scores[i][static_cast<size_t>(t)]);
      }
      start += count;
      if (static_cast<int64_t>(targets.size()) == most) RETURN_IF_ERROR(run());
    }
  }
  RETURN_IF_ERROR(run());
  return scores;
}

}  // namespace retort
