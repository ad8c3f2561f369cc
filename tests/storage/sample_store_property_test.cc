// Random interleavings of acquire, commit, partials, fencing and restarts, against a model of a few lines.
#include <gmock/gmock.h>

#include <map>
#include <random>

#include "storage/database.h"
#include "tests/storage/store_fixture.h"

namespace retort::storage {
namespace {

class PropertyTest : public StoreFixture {
 protected:
  struct Held {
    v1::TaskRef ref;
    v1::LeasedSample sample;
  };
  struct KeyState {
    std::string text;  // empty: no trace
    v1::TaskRef holder;
    uint64_t lease_epoch = 0;
    std::vector<int> partial;
    size_t saved_under_lease = 0;
  };

  bool IsCurrent(const v1::TaskRef& ref) { return fence_.current[ref.task_id()] == ref.epoch(); }
  int Pick(int below) { return static_cast<int>(random_() % static_cast<unsigned>(below)); }
  std::string RandomTask() { return std::string(1, static_cast<char>('a' + Pick(3))); }
  static std::string KeyOf(const v1::LeasedSample& sample) { return EncodeTraceKey(sample.key()).value(); }

  void AcquireSome() {
    const std::string task = RandomTask();
    v1::TaskRef ref = Ref(task, fence_.current[task]);
    const bool stale = Pick(10) == 0;
    if (stale) ref.set_epoch(ref.epoch() - 1);
    const int limit = Pick(6);
    const auto response = Acquire(ref, "s", limit);
    if (stale) {
      ASSERT_EQ(response.status().code(), absl::StatusCode::kFailedPrecondition);
      return;
    }
    ASSERT_TRUE(response.ok()) << response.status();
    int available = 0, remaining = 0;
    for (auto& [key, state] : model_) {
      remaining += state.text.empty();
      available += state.text.empty() && (state.lease_epoch == 0 || !IsCurrent(state.holder));
    }
    ASSERT_EQ(response->samples_size(), std::min(limit, available));
    ASSERT_EQ(response->remaining(), remaining);
    for (const auto& sample : response->samples()) {
      KeyState& state = model_.at(KeyOf(sample));
      ASSERT_TRUE(state.text.empty()) << "a finished key was leased";
      ASSERT_TRUE(state.lease_epoch == 0 || !IsCurrent(state.holder)) << "a held key was leased";
      ASSERT_GT(sample.lease_epoch(), last_epoch_);
      last_epoch_ = sample.lease_epoch();
      ASSERT_EQ(std::vector<int>(sample.partial_token_ids().begin(), sample.partial_token_ids().end()), state.partial);
      state.holder = ref;
      state.lease_epoch = sample.lease_epoch();
      state.saved_under_lease = 0;
      held_.push_back({ref, sample});
    }
  }

  bool Holds(const Held& held, const KeyState& state) {
    return state.text.empty() && IsCurrent(held.ref) && state.lease_epoch == held.sample.lease_epoch();
  }

  void CommitSome() {
    if (held_.empty()) return;
    const Held held = held_[static_cast<size_t>(Pick(static_cast<int>(held_.size())))];
    KeyState& state = model_.at(KeyOf(held.sample));
    const std::string text = "text" + std::to_string(Pick(2));
    const auto outcomes = Commit(held.ref, {Item(held.sample, text)});
    if (!state.text.empty()) {
      ASSERT_EQ(outcomes[0], state.text == text ? v1::COMMIT_OUTCOME_REPLAYED : v1::COMMIT_OUTCOME_FENCED);
    } else if (Holds(held, state)) {
      ASSERT_EQ(outcomes[0], v1::COMMIT_OUTCOME_STORED);
      state = KeyState{.text = text};
    } else {
      ASSERT_EQ(outcomes[0], v1::COMMIT_OUTCOME_FENCED);
    }
  }

  void SaveSome() {
    if (held_.empty()) return;
    const Held& held = held_[static_cast<size_t>(Pick(static_cast<int>(held_.size())))];
    KeyState& state = model_.at(KeyOf(held.sample));
    const std::vector<int> tokens(static_cast<size_t>(Pick(5) + 1), Pick(1000));
    const auto outcome = SavePartial(held.ref, held.sample, tokens);
    if (!Holds(held, state)) {
      ASSERT_EQ(outcome, v1::COMMIT_OUTCOME_FENCED);
    } else if (tokens.size() > state.saved_under_lease) {
      ASSERT_EQ(outcome, v1::COMMIT_OUTCOME_STORED);
      state.partial = tokens;
      state.saved_under_lease = tokens.size();
    } else {
      ASSERT_EQ(outcome, v1::COMMIT_OUTCOME_REPLAYED);
    }
  }

  void FenceSome() {
    const std::string task = RandomTask();
    const uint64_t old = fence_.current[task];
    fence_.current[task] = ++newest_task_epoch_;
    if (Pick(2) == 0) {
      ASSERT_TRUE(store_->ReleaseHolder(task, old).ok());
    }
  }

  void CheckAll() {
    std::map<std::string, int> by_prompt;
    std::vector<std::string> expected;
    for (const auto& [key, state] : model_) {
      if (!state.text.empty()) expected.push_back(state.text);
    }
    std::vector<std::string> listed;
    for (const auto& [index, text] : List("s")) listed.push_back(text);
    ASSERT_THAT(listed, ::testing::UnorderedElementsAreArray(expected));
    ASSERT_EQ(store_->GetSampleSet("s")->trace_count(), static_cast<int64_t>(expected.size()));
    ExpectSound();
  }

  void RunSeed(unsigned seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    random_.seed(seed);
    fence_.current = {{"a", 11}, {"b", 12}, {"c", 13}};
    newest_task_epoch_ = 13;
    std::vector<std::string> prompts;
    for (int i = 0; i < 12; ++i) prompts.push_back("p" + std::to_string(i));
    ASSERT_TRUE(store_->PrepareSampleSet(Slice(Ref("a", 11), "s", 2, 0, prompts, true), fence_).ok());
    for (const std::string& prompt : prompts) {
      for (int sample = 0; sample < 2; ++sample)
        model_[EncodeTraceKey(Hash32("model"), Hash32("sampling"), Hash32(prompt), sample)] = {};
    }
    for (int step = 0; step < 150 && !HasFatalFailure(); ++step) {
      const int choice = Pick(100);
      if (choice < 35) {
        AcquireSome();
      } else if (choice < 65) {
        CommitSome();
      } else if (choice < 85) {
        SaveSome();
      } else if (choice < 98) {
        FenceSome();
      } else {
        Reopen();
        for (auto& [key, state] : model_) state.saved_under_lease = 0;
      }
    }
    if (!HasFatalFailure()) CheckAll();
  }

  std::mt19937 random_;
  std::map<std::string, KeyState> model_;
  std::vector<Held> held_;
  uint64_t last_epoch_ = 0;
  uint64_t newest_task_epoch_ = 0;
};

TEST_F(PropertyTest, FollowsTheModelSeed1) { RunSeed(1); }
TEST_F(PropertyTest, FollowsTheModelSeed2) { RunSeed(2); }
TEST_F(PropertyTest, FollowsTheModelSeed3) { RunSeed(3); }
TEST_F(PropertyTest, FollowsTheModelSeed4) { RunSeed(4); }

}  // namespace
}  // namespace retort::storage
