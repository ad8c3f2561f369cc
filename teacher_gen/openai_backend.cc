#include "teacher_gen/openai_backend.h"

#include <algorithm>
#include <deque>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/status.h"
#include "common/text.h"
#include "teacher_gen/sample_keys.h"
#include "teacher_gen/trace_text.h"

namespace retort {
namespace {

// The store takes traces of at most 8 MiB.
constexpr size_t kMaxTextBytes = size_t{6} << 20;

struct Job {
  v1::LeasedSample sample;
  v1::Sampling sampling;
};

class OpenAiBackend final : public SampleBackend {
 public:
  OpenAiBackend(ChatClientOptions options, int64_t max_concurrency)
      : options_(WithCancel(std::move(options), &stopping_)), max_concurrency_(max_concurrency) {}
  ~OpenAiBackend() override {
    stopping_.store(true);
    {
      // Under the lock, so that no thread misses it between its check and its wait.
      const absl::MutexLock lock(&mu_);
      changed_.SignalAll();
    }
    for (auto& thread : threads_) thread.join();
  }

  absl::Status Render(v1::Prompt& prompt) const override {
    prompt.set_prompt_hash(PromptHashOfMessages(prompt.messages_json()));
    return absl::OkStatus();
  }
  std::string model_revision() const override { return EndpointRevision(options_.base_url, options_.model); }
  int64_t capacity() const override { return max_concurrency_; }
  int64_t in_flight() const override ABSL_LOCKS_EXCLUDED(mu_) {
    const absl::MutexLock lock(&mu_);
    return in_flight_;
  }
  void Start(v1::LeasedSample sample, const v1::Sampling& sampling) override ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<std::vector<FinishedSample>> Poll(absl::Duration wait) override ABSL_LOCKS_EXCLUDED(mu_);
  std::vector<v1::SavePartialsRequest::Item> Partials() const override { return {}; }
  int64_t tokens_written() const override ABSL_LOCKS_EXCLUDED(mu_) {
    const absl::MutexLock lock(&mu_);
    return tokens_written_;
  }

 private:
  static ChatClientOptions WithCancel(ChatClientOptions options, const std::atomic<bool>* cancelled) {
    options.cancelled = cancelled;
    return options;
  }
  void Work() ABSL_LOCKS_EXCLUDED(mu_);
  // Errors: the endpoint's, as opposed to the sample's.
  absl::StatusOr<FinishedSample> Generate(ChatClient& client, const Job& job) ABSL_LOCKS_EXCLUDED(mu_);
  static FinishedSample Finish(const Job& job, const absl::StatusOr<ChatReply>& reply);
  absl::StatusOr<ChatReply> Ask(ChatClient& client, const ChatRequest& request, absl::Time* failing_since = nullptr)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Whether the endpoint has answered a request that was sent after `since`; where none tells, asks it something
  // trivial. Errors: how it failed then.
  absl::Status EndpointAnswers(ChatClient& client, const ChatRequest& like, absl::Time since)
      ABSL_LOCKS_EXCLUDED(mu_, asking_);

  std::atomic<bool> stopping_{false};
  const ChatClientOptions options_;
  const int64_t max_concurrency_;
  std::vector<std::thread> threads_;  // begun as there is work for them

  absl::Mutex asking_ ABSL_ACQUIRED_BEFORE(mu_);  // one thread asks for all
  mutable absl::Mutex mu_;
  absl::CondVar changed_;
  absl::Time last_answer_began_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();  // the latest request that was answered
  std::deque<Job> jobs_ ABSL_GUARDED_BY(mu_);  // bounded by the caller: it leases at most twice the capacity
  int64_t idle_threads_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t in_flight_ ABSL_GUARDED_BY(mu_) = 0;  // jobs, running requests and what Poll has not taken yet
  std::vector<FinishedSample> finished_ ABSL_GUARDED_BY(mu_);
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  int64_t tokens_written_ ABSL_GUARDED_BY(mu_) = 0;
};

FinishedSample OpenAiBackend::Finish(const Job& job, const absl::StatusOr<ChatReply>& reply) {
  FinishedSample finished;
  *finished.trace.mutable_key() = job.sample.key();
  finished.lease_epoch = job.sample.lease_epoch();
  if (!reply.ok()) {
    finished.trace.set_finish_reason("error");
    finished.trace.set_error(std::string(reply.status().message()));
    return finished;
  }
  if (reply->text.size() + reply->reasoning.size() > kMaxTextBytes) {
    finished.trace.set_finish_reason("error");
    finished.trace.set_error(absl::StrCat("the reply has ", reply->text.size() + reply->reasoning.size(),
                                          " bytes, more than the store takes"));
    return finished;
  }
  finished.trace.set_text(
      ValidUtf8(reply->reasoning.empty() ? WithOpenedThink(reply->text) : reply->text, kMaxTextBytes));
  finished.trace.set_reasoning(ValidUtf8(reply->reasoning, kMaxTextBytes));
  finished.trace.set_finish_reason(ValidUtf8(reply->finish_reason, 64));
  finished.trace.set_prompt_tokens(static_cast<int32_t>(std::min<int64_t>(reply->prompt_tokens, INT32_MAX)));
  finished.trace.set_completion_tokens(static_cast<int32_t>(std::min<int64_t>(reply->completion_tokens, INT32_MAX)));
  finished.new_tokens = reply->completion_tokens;
  return finished;
}

void OpenAiBackend::Start(v1::LeasedSample sample, const v1::Sampling& sampling) {
  bool more_threads = false;
  {
    const absl::MutexLock lock(&mu_);
    jobs_.push_back({std::move(sample), sampling});
    ++in_flight_;
    more_threads =
        idle_threads_ < static_cast<int64_t>(jobs_.size()) && static_cast<int64_t>(threads_.size()) < max_concurrency_;
    changed_.SignalAll();
  }
  if (more_threads) threads_.emplace_back([this] { Work(); });
}

void OpenAiBackend::Work() {
  ChatClient client(options_);
  for (;;) {
    Job job;
    {
      const absl::MutexLock lock(&mu_);
      ++idle_threads_;
      while (jobs_.empty() && !stopping_.load()) changed_.Wait(&mu_);
      --idle_threads_;
      if (stopping_.load()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    absl::StatusOr<FinishedSample> finished = Generate(client, job);
    const absl::MutexLock lock(&mu_);
    if (finished.ok()) {
      tokens_written_ += finished->new_tokens;
      finished_.push_back(*std::move(finished));
    } else if (failure_.ok()) {
      failure_ = finished.status();
    }
    changed_.SignalAll();
  }
}

absl::StatusOr<FinishedSample> OpenAiBackend::Generate(ChatClient& client, const Job& job) {
  ChatRequest request;
  request.messages_json = job.sample.prompt().messages_json();
  request.temperature = job.sampling.temperature();
  request.top_p = job.sampling.top_p();
  request.max_tokens = job.sampling.max_tokens();
  request.seed = static_cast<uint32_t>(RandomKey(job.sampling.seed(), job.sample.key()) & 0x7fffffffU);
  absl::Time failing_since = absl::InfiniteFuture();
  absl::StatusOr<ChatReply> reply = Ask(client, request, &failing_since);
  if (absl::IsUnavailable(reply.status())) {
    if (!EndpointAnswers(client, request, failing_since).ok()) return reply.status();
    // It may have come back only after this request gave up.
    request.max_attempts = 1;
    absl::StatusOr<ChatReply> again = Ask(client, request);
    if (!absl::IsUnavailable(again.status())) reply = std::move(again);
  }
  if (absl::IsInvalidArgument(reply.status()) || absl::IsOutOfRange(reply.status())) {
    const absl::Status others = EndpointAnswers(client, request, absl::InfinitePast());
    if (absl::IsUnavailable(others)) return others;
    if (!others.ok()) return reply.status();
  }
  if (absl::IsFailedPrecondition(reply.status()) || absl::IsCancelled(reply.status())) return reply.status();
  return Finish(job, reply);
}

absl::StatusOr<ChatReply> OpenAiBackend::Ask(ChatClient& client, const ChatRequest& request,
                                             absl::Time* failing_since) {
  absl::StatusOr<ChatReply> reply = client.Complete(request, failing_since);
  if (reply.ok()) {
    const absl::MutexLock lock(&mu_);
    last_answer_began_ = std::max(last_answer_began_, reply->began);
  }
  return reply;
}

absl::Status OpenAiBackend::EndpointAnswers(ChatClient& client, const ChatRequest& like, absl::Time since) {
  const absl::MutexLock asking(&asking_);
  {
    const absl::MutexLock lock(&mu_);
    if (last_answer_began_ > since) return absl::OkStatus();
    if (!failure_.ok()) return failure_;
  }
  // With the same sampling: that may be what it refuses.
  ChatRequest trivial = like;
  trivial.messages_json = R"([{"role":"user","content":"Hi"}])";
  trivial.max_attempts = 1;
  trivial.first_token_only = true;
  return Ask(client, trivial).status();
}

absl::StatusOr<std::vector<FinishedSample>> OpenAiBackend::Poll(absl::Duration wait) {
  const absl::Time deadline = absl::Now() + wait;
  const absl::MutexLock lock(&mu_);
  while (finished_.empty() && failure_.ok() && in_flight_ > 0) {
    if (changed_.WaitWithDeadline(&mu_, deadline)) break;
  }
  // What has come is stored before the failure is told.
  if (finished_.empty() && !failure_.ok()) return failure_;
  std::vector<FinishedSample> finished = std::exchange(finished_, {});
  in_flight_ -= static_cast<int64_t>(finished.size());
  return finished;
}

}  // namespace

std::unique_ptr<SampleBackend> MakeOpenAiBackend(ChatClientOptions options, int64_t max_concurrency) {
  return std::make_unique<OpenAiBackend>(std::move(options), max_concurrency);
}

}  // namespace retort
