// Shared by the tests of the sample store: short ways to make requests, and a fence that the test owns.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/hash.h"
#include "storage/sample_store.h"

namespace retort::storage {

// Current placements by task id; a task it has never heard of is fenced.
class FakeFence final : public TaskFence {
 public:
  absl::Status Check(const v1::TaskRef& ref) override {
    if (!unknown.ok()) return unknown;
    const auto it = current.find(ref.task_id());
    if (it != current.end() && it->second == ref.epoch()) return absl::OkStatus();
    return absl::FailedPreconditionError("task " + ref.task_id() + ": not its current placement");
  }
  std::map<std::string, uint64_t> current;
  absl::Status unknown;
};

inline std::string Hash32(const std::string& name) { return ToBytes(Sha256Of(name)); }

inline v1::TaskRef Ref(const std::string& task_id, uint64_t epoch) {
  v1::TaskRef ref;
  ref.set_task_id(task_id);
  ref.set_epoch(epoch);
  return ref;
}

class StoreFixture : public testing::Test {
 protected:
  StoreFixture() {
    folder_ = testing::TempDir() + "/retort_store_" + testing::UnitTest::GetInstance()->current_test_info()->name() +
              "_" + std::to_string(getpid());
    std::filesystem::remove_all(folder_);
    fence_.current = {{"a", 1}, {"b", 2}};
    Reopen();
  }
  ~StoreFixture() override {
    store_.reset();
    std::filesystem::remove_all(folder_);
  }

  void Reopen() {
    store_.reset();
    auto opened = SampleStore::Open({.path = folder_});
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
  }

  static v1::PrepareSampleSetRequest Slice(const v1::TaskRef& ref, const std::string& set, int n, int first,
                                           std::vector<std::string> prompts, bool seal) {
    v1::PrepareSampleSetRequest request;
    *request.mutable_ref() = ref;
    request.set_sample_set_id(set);
    request.set_model_revision(Hash32("model"));
    request.set_sampling_hash(Hash32("sampling"));
    request.set_n(n);
    for (const std::string& text : prompts) {
      v1::Prompt& prompt = *request.add_prompts();
      prompt.set_prompt_index(first++);
      prompt.set_prompt_hash(Hash32(text));
      prompt.set_messages_json("[{\"role\":\"user\",\"content\":\"" + text + "\"}]");
    }
    request.set_seal(seal);
    return request;
  }
  void PrepareSet(const std::string& set, int n, std::vector<std::string> prompts) {
    const absl::Status status =
        store_->PrepareSampleSet(Slice(Ref("a", 1), set, n, 0, std::move(prompts), true), fence_);
    ASSERT_TRUE(status.ok()) << status;
  }

  absl::StatusOr<v1::AcquireSamplesResponse> Acquire(const v1::TaskRef& ref, const std::string& set, int limit,
                                                     const std::string& request_id = "") {
    v1::AcquireSamplesRequest request;
    *request.mutable_ref() = ref;
    request.set_sample_set_id(set);
    request.set_limit(limit);
    request.set_request_id(request_id);
    return store_->AcquireSamples(request, fence_);
  }

  static v1::CommitTracesRequest::Item Item(const v1::LeasedSample& sample, const std::string& text,
                                            const std::string& finish_reason = "stop") {
    v1::CommitTracesRequest::Item item;
    *item.mutable_trace()->mutable_key() = sample.key();
    item.mutable_trace()->set_text(text);
    item.mutable_trace()->set_finish_reason(finish_reason);
    item.set_lease_epoch(sample.lease_epoch());
    return item;
  }
  std::vector<v1::CommitOutcome> Commit(const v1::TaskRef& ref, std::vector<v1::CommitTracesRequest::Item> items) {
    v1::CommitTracesRequest request;
    *request.mutable_ref() = ref;
    for (auto& item : items) *request.add_items() = std::move(item);
    const auto response = store_->CommitTraces(request, fence_);
    EXPECT_TRUE(response.ok()) << response.status();
    std::vector<v1::CommitOutcome> outcomes;
    for (const int outcome : response->outcomes()) outcomes.push_back(static_cast<v1::CommitOutcome>(outcome));
    return outcomes;
  }
  v1::CommitOutcome SavePartial(const v1::TaskRef& ref, const v1::LeasedSample& sample, std::vector<int> tokens) {
    v1::SavePartialsRequest request;
    *request.mutable_ref() = ref;
    v1::SavePartialsRequest::Item& item = *request.add_items();
    *item.mutable_partial()->mutable_key() = sample.key();
    for (const int token : tokens) item.mutable_partial()->add_token_ids(token);
    item.set_lease_epoch(sample.lease_epoch());
    const auto response = store_->SavePartials(request, fence_);
    EXPECT_TRUE(response.ok()) << response.status();
    return response->outcomes(0);
  }

  std::vector<std::pair<int64_t, std::string>> List(const std::string& set, int64_t first = 0, int64_t limit = 0) {
    v1::ListTracesRequest request;
    request.set_sample_set_id(set);
    request.set_first_prompt_index(first);
    request.set_limit(limit);
    std::vector<std::pair<int64_t, std::string>> traces;
    const absl::Status status = store_->ListTraces(request, [&](const v1::ListTracesResponse& batch) {
      for (const auto& item : batch.items()) traces.emplace_back(item.prompt().prompt_index(), item.trace().text());
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
    return traces;
  }
  void ExpectSound() {
    const auto verified = store_->Verify();
    ASSERT_TRUE(verified.ok()) << verified.status();
    EXPECT_EQ(verified->problems_size(), 0) << verified->DebugString();
  }

  std::string folder_;
  FakeFence fence_;
  std::unique_ptr<SampleStore> store_;
};

}  // namespace retort::storage
