#include "teacher_gen/native_backend.h"

#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/status.h"
#include "common/text.h"
#include "teacher_gen/sample_keys.h"
#include "teacher_gen/trace_text.h"

namespace retort {
namespace {

// The store takes traces of at most 8 MiB, token ids included.
constexpr size_t kMaxTextBytes = size_t{4} << 20;

class NativeBackend final : public SampleBackend {
 public:
  NativeBackend(std::unique_ptr<GenerationEngine> engine, std::unique_ptr<Tokenizer> tokenizer,
                const NativeBackendOptions& options)
      : engine_(std::move(engine)),
        tokenizer_(std::move(tokenizer)),
        trace_text_(*tokenizer_),
        model_revision_(options.model_revision),
        batch_size_(options.batch_size) {}

  absl::Status Render(v1::Prompt& prompt) const override {
    ASSIGN_OR_RETURN(const std::string text, tokenizer_->ApplyChatTemplate(prompt.messages_json(), true));
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer_->Encode(text, false));
    prompt.set_prompt_hash(PromptHashOfTokens(ids));
    prompt.mutable_token_ids()->Assign(ids.begin(), ids.end());
    return absl::OkStatus();
  }
  std::string model_revision() const override { return model_revision_; }
  int64_t capacity() const override { return batch_size_; }
  int64_t in_flight() const override { return static_cast<int64_t>(samples_.size() + refused_.size()); }
  void Start(v1::LeasedSample sample, const v1::Sampling& sampling) override;
  absl::StatusOr<std::vector<FinishedSample>> Poll(absl::Duration wait) override;
  std::vector<v1::SavePartialsRequest::Item> Partials() const override;
  int64_t tokens_written() const override;

 private:
  struct Running {
    v1::LeasedSample sample;
    int64_t earlier_tokens = 0;
  };
  static FinishedSample Finished(const v1::LeasedSample& sample);

  const std::unique_ptr<GenerationEngine> engine_;
  const std::unique_ptr<Tokenizer> tokenizer_;
  TraceText trace_text_;
  const std::string model_revision_;
  const int64_t batch_size_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Running> samples_;
  std::vector<FinishedSample> refused_;  // ended before they began
  int64_t finished_tokens_ = 0;
};

FinishedSample NativeBackend::Finished(const v1::LeasedSample& sample) {
  FinishedSample finished;
  *finished.trace.mutable_key() = sample.key();
  finished.trace.set_prompt_tokens(sample.prompt().token_ids_size());
  finished.lease_epoch = sample.lease_epoch();
  return finished;
}

void NativeBackend::Start(v1::LeasedSample sample, const v1::Sampling& sampling) {
  GenerationRequest request;
  request.id = next_id_++;
  request.prompt.assign(sample.prompt().token_ids().begin(), sample.prompt().token_ids().end());
  request.generated.assign(sample.partial_token_ids().begin(), sample.partial_token_ids().end());
  request.sampling.temperature = sampling.temperature();
  request.sampling.top_p = sampling.top_p();
  request.sampling.max_tokens = sampling.max_tokens();
  request.random_key = RandomKey(sampling.seed(), sample.key());
  const uint64_t id = request.id;
  const absl::Status added = engine_->Add(std::move(request));
  if (added.ok()) {
    const int64_t earlier = sample.partial_token_ids_size();
    samples_[id] = {std::move(sample), earlier};
    return;
  }
  FinishedSample refused = Finished(sample);
  refused.trace.set_finish_reason("error");
  refused.trace.set_error(std::string(added.message()));
  refused_.push_back(std::move(refused));
}

absl::StatusOr<std::vector<FinishedSample>> NativeBackend::Poll(absl::Duration) {
  std::vector<FinishedSample> finished = std::exchange(refused_, {});
  if (engine_->active() == 0) return finished;
  ASSIGN_OR_RETURN(const std::vector<GenerationResult> ended, engine_->Step());
  for (const GenerationResult& result : ended) {
    const auto running = samples_.find(result.id);
    FinishedSample done = Finished(running->second.sample);
    const auto& prompt = running->second.sample.prompt().token_ids();
    ASSIGN_OR_RETURN(const std::string text, trace_text_.DecodeAfter({prompt.begin(), prompt.end()}, result.token_ids));
    done.trace.set_text(ValidUtf8(text, kMaxTextBytes));
    done.trace.mutable_token_ids()->Assign(result.token_ids.begin(), result.token_ids.end());
    done.trace.set_finish_reason(result.finish_reason);
    done.trace.set_completion_tokens(static_cast<int32_t>(result.token_ids.size()));
    done.new_tokens = static_cast<int64_t>(result.token_ids.size()) - running->second.earlier_tokens;
    finished_tokens_ += done.new_tokens;
    finished.push_back(std::move(done));
    samples_.erase(running);
  }
  return finished;
}

std::vector<v1::SavePartialsRequest::Item> NativeBackend::Partials() const {
  std::vector<v1::SavePartialsRequest::Item> items;
  for (const GenerationResult& result : engine_->Snapshot()) {
    const Running& running = samples_.at(result.id);
    if (static_cast<int64_t>(result.token_ids.size()) <= running.earlier_tokens) continue;
    v1::SavePartialsRequest::Item item;
    *item.mutable_partial()->mutable_key() = running.sample.key();
    item.mutable_partial()->mutable_token_ids()->Assign(result.token_ids.begin(), result.token_ids.end());
    item.set_lease_epoch(running.sample.lease_epoch());
    items.push_back(std::move(item));
  }
  return items;
}

int64_t NativeBackend::tokens_written() const {
  int64_t tokens = finished_tokens_;
  for (const GenerationResult& result : engine_->Snapshot())
    tokens += static_cast<int64_t>(result.token_ids.size()) - samples_.at(result.id).earlier_tokens;
  return tokens;
}

}  // namespace

std::unique_ptr<SampleBackend> MakeNativeBackend(std::unique_ptr<GenerationEngine> engine,
                                                 std::unique_ptr<Tokenizer> tokenizer,
                                                 const NativeBackendOptions& options) {
  return std::make_unique<NativeBackend>(std::move(engine), std::move(tokenizer), options);
}

absl::StatusOr<std::unique_ptr<SampleBackend>> MakeNativeBackend(const NativeBackendOptions& options) {
  ASSIGN_OR_RETURN(LoadedModel model, LoadModel(options.model));
  EngineOptions engine_options;
  engine_options.max_batch_size = options.batch_size;
  ASSIGN_OR_RETURN(auto engine,
                   GenerationEngine::Create(std::move(model.weights), model.compute_dtype, engine_options));
  return MakeNativeBackend(std::move(engine), std::move(model.tokenizer), options);
}

}  // namespace retort
