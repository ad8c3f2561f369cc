#include "teacher_gen/sample_loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "teacher_gen/openai_backend.h"
#include "teacher_gen/sample_keys.h"
#include "tests/teacher_gen/fake_endpoint.h"

namespace retort {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// The sample store's rules, in memory: a key is leased to one holder and stored once.
class FakeStore {
 public:
  FakeStore(int prompts, int n) {
    for (int prompt = 0; prompt < prompts; ++prompt) {
      for (int sample = 0; sample < n; ++sample) {
        v1::LeasedSample leased;
        leased.mutable_key()->set_prompt_hash(absl::StrCat("prompt ", prompt));
        leased.mutable_key()->set_sample_index(sample);
        leased.set_lease_epoch(1);
        leased.set_prompt_index(prompt);
        leased.mutable_prompt()->set_messages_json(
            absl::StrCat(R"([{"role":"user","content":"question )", prompt, "\"}]"));
        unleased_.push_back(leased);
      }
    }
    total_ = static_cast<int64_t>(unleased_.size());
  }

  absl::StatusOr<v1::AcquireSamplesResponse> Acquire(int limit) {
    const absl::MutexLock lock(&mu_);
    v1::AcquireSamplesResponse response;
    response.set_remaining(total_ - static_cast<int64_t>(traces_.size()));
    while (limit-- > 0 && !unleased_.empty()) {
      *response.add_samples() = unleased_.front();
      unleased_.erase(unleased_.begin());
      ++held_;
    }
    most_held_ = std::max(most_held_, held_);
    return response;
  }

  absl::StatusOr<std::vector<v1::CommitOutcome>> Commit(std::vector<v1::CommitTracesRequest::Item> items) {
    const absl::MutexLock lock(&mu_);
    std::vector<v1::CommitOutcome> outcomes;
    for (const auto& item : items) {
      const std::string key = absl::StrCat(item.trace().key().prompt_hash(), "/", item.trace().key().sample_index());
      ++commits_[key];
      traces_[key] = item.trace();
      --held_;
      outcomes.push_back(v1::COMMIT_OUTCOME_STORED);
    }
    return outcomes;
  }

  CommitCalls Calls() {
    return {[this](std::vector<v1::CommitTracesRequest::Item> items) { return Commit(std::move(items)); },
            [this](std::vector<v1::SavePartialsRequest::Item> items) {
              const absl::MutexLock lock(&mu_);
              partials_ += static_cast<int64_t>(items.size());
              return absl::StatusOr<std::vector<v1::CommitOutcome>>(
                  std::vector<v1::CommitOutcome>(items.size(), v1::COMMIT_OUTCOME_STORED));
            }};
  }
  SampleLoopOptions Options() {
    SampleLoopOptions options;
    options.acquire = [this](int limit) { return Acquire(limit); };
    options.retry_interval = absl::Milliseconds(5);
    return options;
  }

  absl::Mutex mu_;
  std::vector<v1::LeasedSample> unleased_;
  std::map<std::string, v1::Trace> traces_;
  std::map<std::string, int> commits_;
  int64_t total_ = 0;
  int64_t held_ = 0;
  int64_t most_held_ = 0;
  int64_t partials_ = 0;
};

ChatClientOptions ClientOptions(const FakeEndpoint& endpoint) {
  ChatClientOptions options;
  options.base_url = endpoint.base_url();
  options.model = "teacher";
  options.timeout = absl::Milliseconds(400);
  options.initial_backoff = absl::Milliseconds(1);
  options.max_backoff = absl::Milliseconds(4);
  options.max_retry_after = absl::Milliseconds(2);
  return options;
}

TEST(SampleLoop, EveryPromptEndsWithOneRightTraceWhateverTheEndpointDoes) {
  FakeEndpoint endpoint([&](const nlohmann::json& request, int number, httplib::Response& response) {
    switch (number % 7) {
      case 1:
        response.set_header("Retry-After", "1");
        return FakeEndpoint::Fail(response, 429, "slow down");
      case 2:
        return FakeEndpoint::BreakOff(response, 500, R"({"choices": [)");
      case 3:
        return response.set_content("{\"choices\": [{\"mess", "application/json");
      case 4:
        return FakeEndpoint::Fail(response, 500, "crashed");
      case 5:
        if (number == 5) std::this_thread::sleep_for(std::chrono::milliseconds(500));
        [[fallthrough]];
      default:
        return FakeEndpoint::Answer(response,
                                    absl::StrCat("answer to ", request["messages"][0]["content"].get<std::string>()));
    }
  });
  FakeStore store(40, 3);
  TraceCommitter committer(store.Calls(), 16);
  ChatClientOptions options = ClientOptions(endpoint);
  options.max_attempts = 100;
  const auto backend = MakeOpenAiBackend(options, 8);
  int64_t last_remaining = -1;
  SampleLoopOptions loop = store.Options();
  loop.progress = [&](int64_t remaining) { last_remaining = remaining; };
  const absl::Status status = RunSampleLoop(loop, *backend, committer);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_THAT(store.traces_, SizeIs(120));
  for (const auto& [key, trace] : store.traces_) {
    EXPECT_EQ(store.commits_[key], 1) << key;
    EXPECT_EQ(trace.text(), absl::StrCat("answer to question ", trace.key().prompt_hash().substr(7))) << key;
    EXPECT_EQ(trace.finish_reason(), "stop");
    EXPECT_EQ(trace.completion_tokens(), 5);
  }
  EXPECT_EQ(last_remaining, 0);
  EXPECT_EQ(committer.stored(), 120);
  EXPECT_LE(store.most_held_, 16 + 16);  // twice the capacity, and what waits to be committed
}

TEST(SampleLoop, AFailingPromptIsATraceNotTheEnd) {
  FakeEndpoint endpoint([&](const nlohmann::json& request, int, httplib::Response& response) {
    const std::string question = request["messages"][0]["content"];
    if (question == "question 1") return FakeEndpoint::Fail(response, 400, "prompt is too long for the context window");
    if (question == "question 2") return FakeEndpoint::Fail(response, 500, "always");
    FakeEndpoint::Answer(response, "yes");
  });
  FakeStore store(4, 1);
  TraceCommitter committer(store.Calls(), 16);
  ChatClientOptions options = ClientOptions(endpoint);
  options.max_attempts = 3;
  const auto backend = MakeOpenAiBackend(options, 2);
  ASSERT_TRUE(RunSampleLoop(store.Options(), *backend, committer).ok());
  EXPECT_EQ(store.traces_["prompt 0/0"].text(), "yes");
  EXPECT_EQ(store.traces_["prompt 1/0"].finish_reason(), "error");
  EXPECT_THAT(store.traces_["prompt 1/0"].error(), HasSubstr("context window"));
  EXPECT_EQ(store.traces_["prompt 2/0"].finish_reason(), "error");
  EXPECT_THAT(store.traces_["prompt 2/0"].error(), HasSubstr("gave up after 3 attempts"));
  EXPECT_EQ(committer.outcomes(), (std::map<std::string, int64_t>{{"error", 2}, {"stop", 2}}));
}

TEST(SampleLoop, AFailingPromptIsATraceAlsoWhereItIsTheLast) {
  FakeEndpoint endpoint([&](const nlohmann::json& request, int, httplib::Response& response) {
    if (request["messages"][0]["content"] == "question 0") return FakeEndpoint::Fail(response, 500, "always");
    FakeEndpoint::Answer(response, "yes");
  });
  FakeStore store(1, 1);
  TraceCommitter committer(store.Calls(), 16);
  ChatClientOptions options = ClientOptions(endpoint);
  options.max_attempts = 3;
  const auto backend = MakeOpenAiBackend(options, 2);
  ASSERT_TRUE(RunSampleLoop(store.Options(), *backend, committer).ok());
  EXPECT_EQ(store.traces_["prompt 0/0"].finish_reason(), "error");
  EXPECT_THAT(store.traces_["prompt 0/0"].error(), HasSubstr("gave up after 3 attempts"));
}

TEST(SampleLoop, AnEndpointThatIsAwayEndsTheTaskNotTheSamples) {
  FakeEndpoint endpoint([&](const nlohmann::json&, int number, httplib::Response& response) {
    if (number > 20) return FakeEndpoint::Fail(response, 503, "restarting");
    FakeEndpoint::Answer(response, "yes");
  });
  FakeStore store(60, 1);
  TraceCommitter committer(store.Calls(), 16);
  ChatClientOptions options = ClientOptions(endpoint);
  options.max_attempts = 3;
  options.initial_backoff = options.max_backoff = absl::Milliseconds(20);
  const auto backend = MakeOpenAiBackend(options, 8);
  const absl::Status status = RunSampleLoop(store.Options(), *backend, committer);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);  // infrastructure: tried again
  EXPECT_THAT(std::string(status.message()), HasSubstr("HTTP 503: restarting"));
  EXPECT_THAT(store.traces_, SizeIs(20));
  EXPECT_EQ(committer.outcomes(), (std::map<std::string, int64_t>{{"stop", 20}}));
}

TEST(SampleLoop, WhoGaveUpAsksOnceMoreWhenTheEndpointAnswersAgain) {
  FakeEndpoint endpoint([&](const nlohmann::json&, int number, httplib::Response& response) {
    if (number <= 3) return FakeEndpoint::Fail(response, 503, "restarting");
    FakeEndpoint::Answer(response, "yes");
  });
  FakeStore store(1, 1);
  TraceCommitter committer(store.Calls(), 16);
  ChatClientOptions options = ClientOptions(endpoint);
  options.max_attempts = 3;
  const auto backend = MakeOpenAiBackend(options, 1);
  ASSERT_TRUE(RunSampleLoop(store.Options(), *backend, committer).ok());
  EXPECT_EQ(store.traces_["prompt 0/0"].finish_reason(), "stop");
}

TEST(SampleLoop, ARefusedPromptIsATraceEvenBeforeAnyOtherIsAnswered) {
  FakeEndpoint endpoint([&](const nlohmann::json& request, int, httplib::Response& response) {
    if (request["messages"][0]["content"] == "question 0")
      return FakeEndpoint::Fail(response, 400, "blocked by the content filter");
    FakeEndpoint::Answer(response, "yes");
  });
  FakeStore store(3, 1);
  TraceCommitter committer(store.Calls(), 16);
  const auto backend = MakeOpenAiBackend(ClientOptions(endpoint), 1);
  const absl::Status status = RunSampleLoop(store.Options(), *backend, committer);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(store.traces_["prompt 0/0"].finish_reason(), "error");
  EXPECT_EQ(store.traces_["prompt 0/0"].error(), "HTTP 400: blocked by the content filter");
  EXPECT_EQ(committer.outcomes(), (std::map<std::string, int64_t>{{"error", 1}, {"stop", 2}}));
}

TEST(SampleLoop, ARefusalOfEveryRequestEndsTheTaskWithTheServersMessage) {
  for (const char* message : {"max_tokens is too large: 32768", "this model's maximum context length is 4096 tokens"}) {
    FakeEndpoint endpoint(
        [&](const nlohmann::json&, int, httplib::Response& response) { FakeEndpoint::Fail(response, 400, message); });
    FakeStore store(20, 1);
    TraceCommitter committer(store.Calls(), 16);
    const auto backend = MakeOpenAiBackend(ClientOptions(endpoint), 4);
    const absl::Status status = RunSampleLoop(store.Options(), *backend, committer);
    EXPECT_TRUE(absl::IsInvalidArgument(status) || absl::IsOutOfRange(status)) << status;  // the user's to mend
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_THAT(store.traces_, IsEmpty());
  }
}

TEST(SampleLoop, OpensTheThinkingThatTheEndpointsTemplateOpened) {
  FakeEndpoint endpoint([&](const nlohmann::json& request, int, httplib::Response& response) {
    const std::string question = request["messages"][0]["content"];
    if (question == "question 0") return FakeEndpoint::Answer(response, "two and two\n</think>\n\n4");
    if (question == "question 1") return FakeEndpoint::Answer(response, "<think>\nhm\n</think>\n\n4");
    if (question == "question 2") return FakeEndpoint::Answer(response, "4", {{"reasoning_content", "hm </think>"}});
    FakeEndpoint::Answer(response, "4");
  });
  FakeStore store(4, 1);
  TraceCommitter committer(store.Calls(), 16);
  const auto backend = MakeOpenAiBackend(ClientOptions(endpoint), 4);
  ASSERT_TRUE(RunSampleLoop(store.Options(), *backend, committer).ok());
  EXPECT_EQ(store.traces_["prompt 0/0"].text(), "<think>\ntwo and two\n</think>\n\n4");
  EXPECT_EQ(store.traces_["prompt 1/0"].text(), "<think>\nhm\n</think>\n\n4");
  EXPECT_EQ(store.traces_["prompt 2/0"].text(), "4");
  EXPECT_EQ(store.traces_["prompt 3/0"].text(), "4");
}

TEST(SampleLoop, ARefusalForGoodEndsTheTaskWithTheServersMessage) {
  FakeEndpoint endpoint([&](const nlohmann::json&, int, httplib::Response& response) {
    FakeEndpoint::Fail(response, 401, "invalid api key");
  });
  FakeStore store(20, 1);
  TraceCommitter committer(store.Calls(), 16);
  const auto backend = MakeOpenAiBackend(ClientOptions(endpoint), 4);
  const absl::Status status = RunSampleLoop(store.Options(), *backend, committer);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("invalid api key"));
  EXPECT_THAT(store.traces_, IsEmpty());
}

// Ends each sample after a fixed number of polls.
class SlowBackend final : public SampleBackend {
 public:
  explicit SlowBackend(int64_t capacity) : capacity_(capacity) {}
  absl::Status Render(v1::Prompt&) const override { return absl::OkStatus(); }
  std::string model_revision() const override { return std::string(32, 'm'); }
  int64_t capacity() const override { return capacity_; }
  int64_t in_flight() const override { return static_cast<int64_t>(samples_.size()); }
  void Start(v1::LeasedSample sample, const v1::Sampling&) override {
    samples_.push_back({std::move(sample), 0});
    most_in_flight_ = std::max(most_in_flight_, in_flight());
  }
  absl::StatusOr<std::vector<FinishedSample>> Poll(absl::Duration) override {
    std::vector<FinishedSample> finished;
    if (polls_before_failure_ == 0) return absl::InternalError("the engine broke");
    --polls_before_failure_;
    int64_t working = 0;
    std::erase_if(samples_, [&](auto& running) {
      if (working++ >= capacity_ || ++running.second < 5) return false;
      FinishedSample done;
      *done.trace.mutable_key() = running.first.key();
      done.trace.set_finish_reason("stop");
      finished.push_back(done);
      return true;
    });
    return finished;
  }
  std::vector<v1::SavePartialsRequest::Item> Partials() const override {
    std::vector<v1::SavePartialsRequest::Item> items;
    for (const auto& [sample, polls] : samples_) {
      v1::SavePartialsRequest::Item item;
      *item.mutable_partial()->mutable_key() = sample.key();
      items.push_back(item);
    }
    return items;
  }
  int64_t tokens_written() const override { return 0; }

  const int64_t capacity_;
  std::vector<std::pair<v1::LeasedSample, int>> samples_;
  int64_t most_in_flight_ = 0;
  int64_t polls_before_failure_ = -1;  // below 0: none
};

TEST(SampleLoop, StoresWhatIsFinishedBeforeItFails) {
  FakeStore store(8, 1);
  CommitCalls calls = store.Calls();
  calls.commit = [&](std::vector<v1::CommitTracesRequest::Item> items) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // the failure comes first
    return store.Commit(std::move(items));
  };
  TraceCommitter committer(calls, 16);
  SlowBackend backend(4);
  backend.polls_before_failure_ = 5;
  EXPECT_EQ(RunSampleLoop(store.Options(), backend, committer).code(), absl::StatusCode::kInternal);
  EXPECT_THAT(store.traces_, SizeIs(4));
}

TEST(SampleLoop, SavesPartialsAsItGoes) {
  FakeStore store(600, 1);
  TraceCommitter committer(store.Calls(), 16);
  SlowBackend backend(4);
  SampleLoopOptions options = store.Options();
  options.partials_interval = absl::ZeroDuration();
  ASSERT_TRUE(RunSampleLoop(options, backend, committer).ok());
  EXPECT_THAT(store.traces_, SizeIs(600));
  EXPECT_LE(backend.most_in_flight_, 8);
  EXPECT_GT(store.partials_, 0);
}

TEST(SampleLoop, WaitsForSamplesThatOthersHold) {
  FakeStore store(3, 1);
  const auto elsewhere = store.Acquire(1);
  TraceCommitter committer(store.Calls(), 16);
  SlowBackend backend(4);
  SampleLoopOptions options = store.Options();
  int asked = 0;
  options.acquire = [&](int limit) {
    if (++asked == 4) {  // the other holder finishes
      v1::CommitTracesRequest::Item item;
      *item.mutable_trace()->mutable_key() = elsewhere->samples(0).key();
      (void)store.Commit({item});
    }
    return store.Acquire(limit);
  };
  ASSERT_TRUE(RunSampleLoop(options, backend, committer).ok());
  EXPECT_THAT(store.traces_, SizeIs(3));
  EXPECT_EQ(committer.stored(), 2);
}

TEST(SampleLoop, StopsWhenTheStoreRefuses) {
  FakeStore store(30, 1);
  CommitCalls calls = store.Calls();
  calls.commit = [](std::vector<v1::CommitTracesRequest::Item>) -> absl::StatusOr<std::vector<v1::CommitOutcome>> {
    return absl::ResourceExhaustedError("disk full");
  };
  TraceCommitter committer(calls, 2);
  SlowBackend backend(4);
  EXPECT_EQ(RunSampleLoop(store.Options(), backend, committer).code(), absl::StatusCode::kResourceExhausted);
}

TEST(SamplesToLease, KeepsTheBackendBusyWithoutHoarding) {
  EXPECT_EQ(SamplesToLease(0, 32, -1), 64);
  EXPECT_EQ(SamplesToLease(60, 32, 1000), 0);  // not for every sample that ends
  EXPECT_EQ(SamplesToLease(50, 32, 1000), 14);
  EXPECT_EQ(SamplesToLease(31, 32, 100), 1);  // few are left: what it can work on at once
  EXPECT_EQ(SamplesToLease(40, 32, 100), 0);
  EXPECT_EQ(SamplesToLease(0, 1, 10), 2);
  EXPECT_EQ(SamplesToLease(1, 1, 2), 0);
}

TEST(TraceCommitter, CountsTheFencedAndDropsPartialsOfWhatIsDone) {
  absl::Mutex mu;
  std::vector<std::string> saved;
  bool open = false;
  CommitCalls calls;
  calls.commit = [&](std::vector<v1::CommitTracesRequest::Item> items) {
    const absl::MutexLock lock(&mu);
    mu.Await(absl::Condition(&open));
    return absl::StatusOr<std::vector<v1::CommitOutcome>>(
        std::vector<v1::CommitOutcome>(items.size(), v1::COMMIT_OUTCOME_FENCED));
  };
  calls.save_partials = [&](std::vector<v1::SavePartialsRequest::Item> items) {
    const absl::MutexLock lock(&mu);
    for (const auto& item : items) saved.push_back(item.partial().key().prompt_hash());
    return absl::StatusOr<std::vector<v1::CommitOutcome>>(std::vector<v1::CommitOutcome>(items.size()));
  };
  TraceCommitter committer(calls, 8);
  const auto trace = [](const char* name) {
    v1::CommitTracesRequest::Item item;
    item.mutable_trace()->mutable_key()->set_prompt_hash(name);
    item.mutable_trace()->set_finish_reason("stop");
    return item;
  };
  const auto partial = [](const char* name) {
    v1::SavePartialsRequest::Item item;
    item.mutable_partial()->mutable_key()->set_prompt_hash(name);
    return item;
  };
  ASSERT_TRUE(committer.Add(trace("a")).ok());  // keeps the thread busy
  committer.SavePartials({partial("b"), partial("c")});
  ASSERT_TRUE(committer.Add(trace("b")).ok());
  {
    const absl::MutexLock lock(&mu);
    open = true;
  }
  ASSERT_TRUE(committer.Flush().ok());
  EXPECT_EQ(committer.stored(), 0);
  EXPECT_EQ(committer.outcomes(), (std::map<std::string, int64_t>{{"fenced", 2}}));
  for (int i = 0; i < 1000; ++i) {
    {
      const absl::MutexLock lock(&mu);
      if (!saved.empty()) break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const absl::MutexLock lock(&mu);
  EXPECT_EQ(saved, std::vector<std::string>{"c"});
}

}  // namespace
}  // namespace retort
