#include "storage/sample_store.h"

#include <gmock/gmock.h>

#include "storage/manifest.h"
#include "tests/storage/store_fixture.h"

namespace retort::storage {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

class SampleStoreTest : public StoreFixture {};

constexpr auto kStored = v1::COMMIT_OUTCOME_STORED;
constexpr auto kReplayed = v1::COMMIT_OUTCOME_REPLAYED;
constexpr auto kFenced = v1::COMMIT_OUTCOME_FENCED;

TEST_F(SampleStoreTest, LeasesInOrderAndCommitsOnce) {
  PrepareSet("s", 2, {"p0", "p1"});
  const auto first = Acquire(Ref("a", 1), "s", 3);
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_EQ(first->samples_size(), 3);
  EXPECT_EQ(first->remaining(), 4);
  EXPECT_EQ(first->samples(0).prompt_index(), 0);
  EXPECT_EQ(first->samples(1).key().sample_index(), 1);
  EXPECT_EQ(first->samples(2).prompt().messages_json(), "[{\"role\":\"user\",\"content\":\"p1\"}]");
  EXPECT_LT(first->samples(0).lease_epoch(), first->samples(1).lease_epoch());
  EXPECT_EQ(Acquire(Ref("b", 2), "s", 3)->samples_size(), 1);
  EXPECT_EQ(Acquire(Ref("b", 2), "s", 3)->samples_size(), 0);

  EXPECT_THAT(Commit(Ref("a", 1), {Item(first->samples(0), "x"), Item(first->samples(1), "y", "length")}),
              ElementsAre(kStored, kStored));
  EXPECT_THAT(Commit(Ref("a", 1),
                     {Item(first->samples(0), "x"), Item(first->samples(1), "changed"), Item(first->samples(2), "z")}),
              ElementsAre(kReplayed, kFenced, kStored));
  EXPECT_THAT(List("s"), ElementsAre(Pair(0, "x"), Pair(0, "y"), Pair(1, "z")));
  const auto info = store_->GetSampleSet("s");
  ASSERT_TRUE(info.ok());
  EXPECT_EQ(info->trace_count(), 3);
  EXPECT_EQ(info->leased_count(), 1);
  EXPECT_EQ(info->outcomes().counts().at("stop"), 2);
  EXPECT_EQ(info->outcomes().counts().at("length"), 1);
  ExpectSound();
}

TEST_F(SampleStoreTest, RefusesALateWriterKeyByKeyAndKeepsItsPartials) {
  PrepareSet("s", 1, {"p0", "p1", "p2"});
  const auto old = Acquire(Ref("a", 1), "s", 3);
  ASSERT_EQ(old->samples_size(), 3);
  EXPECT_EQ(SavePartial(Ref("a", 1), old->samples(1), {5, 6, 7}), kStored);
  EXPECT_EQ(SavePartial(Ref("a", 1), old->samples(1), {5, 6}), kReplayed);
  EXPECT_THAT(Commit(Ref("a", 1), {Item(old->samples(0), "kept")}), ElementsAre(kStored));

  fence_.current["a"] = 3;
  // Nobody called ReleaseHolder; running short of keys finds the stale holder.
  const auto taken = Acquire(Ref("b", 2), "s", 10);
  ASSERT_EQ(taken->samples_size(), 2);
  EXPECT_EQ(taken->samples(0).prompt_index(), 1);
  EXPECT_THAT(taken->samples(0).partial_token_ids(), ElementsAre(5, 6, 7));
  EXPECT_GT(taken->samples(0).lease_epoch(), old->samples(2).lease_epoch());

  EXPECT_THAT(Commit(Ref("a", 1),
                     {Item(old->samples(0), "kept"), Item(old->samples(1), "late"), Item(old->samples(2), "late")}),
              ElementsAre(kReplayed, kFenced, kFenced));
  EXPECT_EQ(SavePartial(Ref("a", 1), old->samples(1), {5, 6, 7, 8}), kFenced);
  EXPECT_THAT(Commit(Ref("b", 2), {Item(taken->samples(0), "new"), Item(taken->samples(1), "new")}),
              ElementsAre(kStored, kStored));
  EXPECT_THAT(List("s"), ElementsAre(Pair(0, "kept"), Pair(1, "new"), Pair(2, "new")));
  EXPECT_EQ(store_->GetStats()->partials(), 0);
  ExpectSound();
}

TEST_F(SampleStoreTest, ReleasesAHolderWhenTold) {
  PrepareSet("s", 1, {"p0", "p1"});
  ASSERT_EQ(Acquire(Ref("a", 1), "s", 2)->samples_size(), 2);
  EXPECT_EQ(store_->ReleaseHolder("a", 7).value(), 0);
  EXPECT_EQ(store_->ReleaseHolder("a", 1).value(), 2);
  EXPECT_EQ(store_->ReleaseHolder("a", 1).value(), 0);
  const auto again = Acquire(Ref("b", 2), "s", 2);
  ASSERT_EQ(again->samples_size(), 2);
  EXPECT_EQ(again->samples(0).prompt_index() + again->samples(1).prompt_index(), 1);
}

TEST_F(SampleStoreTest, FencedCallersGetNothing) {
  PrepareSet("s", 1, {"p0"});
  EXPECT_EQ(Acquire(Ref("a", 2), "s", 1).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(store_->PrepareSampleSet(Slice(Ref("a", 9), "t", 1, 0, {"p"}, true), fence_).code(),
            absl::StatusCode::kFailedPrecondition);
  fence_.unknown = absl::UnavailableError("starting");
  EXPECT_EQ(Acquire(Ref("a", 1), "s", 1).status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(SampleStoreTest, ARestartKeepsLeasesPartialsAndEpochs) {
  PrepareSet("s", 2, {"p0", "p1"});
  const auto before = Acquire(Ref("a", 1), "s", 2);
  ASSERT_EQ(before->samples_size(), 2);
  EXPECT_EQ(SavePartial(Ref("a", 1), before->samples(1), {1, 2}), kStored);
  Reopen();
  EXPECT_EQ(store_->GetSampleSet("s")->leased_count(), 2);
  EXPECT_THAT(Commit(Ref("a", 1), {Item(before->samples(0), "x")}), ElementsAre(kStored));
  const auto others = Acquire(Ref("b", 2), "s", 10);
  ASSERT_EQ(others->samples_size(), 2);
  EXPECT_GT(others->samples(0).lease_epoch(), before->samples(1).lease_epoch());
  EXPECT_EQ(store_->ReleaseHolder("a", 1).value(), 1);
  EXPECT_THAT(Acquire(Ref("b", 2), "s", 10)->samples(0).partial_token_ids(), ElementsAre(1, 2));
  ExpectSound();
}

TEST_F(SampleStoreTest, ALostAcquireAnswerIsGivenAgain) {
  PrepareSet("s", 1, {"p0", "p1", "p2"});
  const auto lost = Acquire(Ref("a", 1), "s", 2, "r1");
  Reopen();
  const auto again = Acquire(Ref("a", 1), "s", 2, "r1");
  ASSERT_EQ(again->samples_size(), 2);
  std::set<uint64_t> epochs;
  for (const auto& sample : lost->samples()) epochs.insert(sample.lease_epoch());
  for (const auto& sample : again->samples()) EXPECT_EQ(epochs.erase(sample.lease_epoch()), 1u);
  EXPECT_EQ(Acquire(Ref("a", 1), "s", 2, "r2")->samples_size(), 1);
}

TEST_F(SampleStoreTest, SlicesAreIdempotentWhateverTheirBorders) {
  ASSERT_TRUE(store_->PrepareSampleSet(Slice(Ref("a", 1), "s", 1, 0, {"p0", "p1", "p2"}, false), fence_).ok());
  EXPECT_EQ(Acquire(Ref("a", 1), "s", 1).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(store_->PrepareSampleSet(Slice(Ref("a", 1), "s", 1, 4, {"p4"}, false), fence_).code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(store_->PrepareSampleSet(Slice(Ref("b", 2), "s", 1, 0, {"p0"}, false), fence_).ok());
  EXPECT_TRUE(store_->PrepareSampleSet(Slice(Ref("b", 2), "s", 1, 1, {"p1", "p2", "p3"}, true), fence_).ok());
  EXPECT_TRUE(store_->PrepareSampleSet(Slice(Ref("a", 1), "s", 1, 3, {"p3"}, true), fence_).ok());
  EXPECT_EQ(store_->GetSampleSet("s")->prompt_count(), 4);
  const auto refused = [&](v1::PrepareSampleSetRequest request) {
    return store_->PrepareSampleSet(request, fence_).code() == absl::StatusCode::kAlreadyExists;
  };
  EXPECT_TRUE(refused(Slice(Ref("a", 1), "s", 1, 4, {"p4"}, true)));
  EXPECT_TRUE(refused(Slice(Ref("a", 1), "s", 1, 0, {"other"}, false)));
  EXPECT_TRUE(refused(Slice(Ref("a", 1), "s", 1, 0, {"p0", "p1"}, true)));
  EXPECT_TRUE(refused(Slice(Ref("a", 1), "s", 2, 0, {"p0"}, false)));
  auto changed = Slice(Ref("a", 1), "s", 1, 0, {"p0"}, false);
  changed.mutable_prompts(0)->set_answer("42");
  EXPECT_TRUE(refused(changed));
  Reopen();
  EXPECT_EQ(store_->GetSampleSet("s")->prompt_count(), 4);
  ExpectSound();
}

TEST_F(SampleStoreTest, SetsShareKeysAndReuseTraces) {
  PrepareSet("s", 1, {"p0", "p1"});
  const auto a = Acquire(Ref("a", 1), "s", 1);
  Commit(Ref("a", 1), {Item(a->samples(0), "x")});
  PrepareSet("t", 2, {"p1", "p0"});
  auto info = store_->GetSampleSet("t");
  EXPECT_EQ(info->trace_count(), 1);
  EXPECT_EQ(info->outcomes().counts().at("reused"), 1);

  // p1's first sample is taken through s; t must not hand it out, and sees its trace when it comes.
  const auto in_s = Acquire(Ref("a", 1), "s", 1);
  ASSERT_EQ(in_s->samples_size(), 1);
  const auto in_t = Acquire(Ref("b", 2), "t", 10);
  EXPECT_EQ(in_t->samples_size(), 2);
  EXPECT_EQ(in_t->remaining(), 3);
  EXPECT_EQ(store_->GetSampleSet("t")->leased_count(), 3);
  Commit(Ref("a", 1), {Item(in_s->samples(0), "y")});
  EXPECT_EQ(store_->GetSampleSet("t")->trace_count(), 2);
  Reopen();
  info = store_->GetSampleSet("t");
  EXPECT_EQ(info->trace_count(), 2);
  EXPECT_EQ(info->outcomes().counts().at("reused"), 1);
  EXPECT_EQ(info->outcomes().counts().at("stop"), 1);
  EXPECT_EQ(info->leased_count(), 2);
  EXPECT_THAT(List("t"), ElementsAre(Pair(0, "y"), Pair(1, "x")));
}

TEST_F(SampleStoreTest, CountsDuplicatePromptsAndGeneratesThemOnce) {
  PrepareSet("s", 1, {"p", "q", "p", "p"});
  const auto leased = Acquire(Ref("a", 1), "s", 10);
  ASSERT_EQ(leased->samples_size(), 2);
  EXPECT_EQ(leased->remaining(), 4);
  Commit(Ref("a", 1), {Item(leased->samples(0), "x")});
  EXPECT_EQ(store_->GetSampleSet("s")->trace_count(), 3);
  Commit(Ref("a", 1), {Item(leased->samples(1), "y")});
  EXPECT_EQ(Acquire(Ref("a", 1), "s", 10)->remaining(), 0);
  EXPECT_THAT(List("s"), ElementsAre(Pair(0, "x"), Pair(1, "y"), Pair(2, "x"), Pair(3, "x")));
  EXPECT_THAT(List("s", 2, 1), ElementsAre(Pair(2, "x")));
  EXPECT_EQ(store_->GetSampleSet("s")->outcomes().counts().at("stop"), 4);
  Reopen();
  EXPECT_EQ(store_->GetSampleSet("s")->trace_count(), 4);
}

TEST_F(SampleStoreTest, StoresManifestsUnderTheirHash) {
  PrepareSet("s", 1, {"p0"});
  const auto leased = Acquire(Ref("a", 1), "s", 1);
  v1::CreateManifestRequest request;
  *request.mutable_ref() = Ref("a", 1);
  *request.mutable_manifest()->add_keys() = leased->samples(0).key();
  request.mutable_manifest()->set_train_count(1);
  request.mutable_manifest()->mutable_train()->set_sha256(Sha256Hex("file"));
  EXPECT_EQ(store_->CreateManifest(request, fence_).status().code(), absl::StatusCode::kNotFound);
  Commit(Ref("a", 1), {Item(leased->samples(0), "x")});
  const auto id = store_->CreateManifest(request, fence_);
  ASSERT_TRUE(id.ok()) << id.status();
  EXPECT_EQ(store_->CreateManifest(request, fence_).value(), *id);
  EXPECT_EQ(store_->GetManifest(*id)->keys_size(), 1);
  EXPECT_EQ(store_->GetManifest(Sha256Hex("none")).status().code(), absl::StatusCode::kNotFound);
  request.mutable_manifest()->set_manifest_sha256(Sha256Hex("cut short on the way"));
  EXPECT_EQ(store_->CreateManifest(request, fence_).status().code(), absl::StatusCode::kDataLoss);
  request.mutable_manifest()->set_train_count(2);
  EXPECT_EQ(store_->CreateManifest(request, fence_).status().code(), absl::StatusCode::kInvalidArgument);
  ExpectSound();
}

TEST_F(SampleStoreTest, ImportsRowsOnceAndListsThemAsTheyWere) {
  v1::ImportTracesRequest request;
  request.set_sample_set_id("import/x");
  for (int i = 0; i < 3; ++i) {
    auto& row = *request.add_rows();
    row.set_messages_json(R"([{"role":"user","content":"q"},{"role":"assistant","content":"a)" + std::to_string(i) +
                          R"("}])");
    row.set_row_json("line " + std::to_string(i));
    row.set_sample_index(i);
  }
  EXPECT_EQ(store_->ImportTraces(request)->stored(), 3);
  EXPECT_EQ(store_->ImportTraces(request)->already_present(), 3);
  request.clear_rows();
  request.set_first_row(3);
  request.set_seal(true);
  EXPECT_TRUE(store_->ImportTraces(request).ok());
  EXPECT_THAT(List("import/x"), ElementsAre(Pair(0, "a0"), Pair(1, "a1"), Pair(2, "a2")));
  auto& extra = *request.add_rows();
  extra.set_messages_json(R"([{"role":"user","content":"q"},{"role":"assistant","content":"b"}])");
  extra.set_sample_index(3);
  EXPECT_EQ(store_->ImportTraces(request).status().code(), absl::StatusCode::kAlreadyExists);
  extra.set_messages_json(R"([{"role":"user","content":"q"}])");
  EXPECT_THAT(std::string(store_->ImportTraces(request).status().message()),
              HasSubstr("row 3.messages: the last one must be"));
  EXPECT_EQ(store_->GetSampleSet("import/x")->trace_count(), 3);
  ExpectSound();
}

TEST_F(SampleStoreTest, RefusesMalformedRequests) {
  PrepareSet("s", 1, {"p0"});
  const auto leased = Acquire(Ref("a", 1), "s", 1);
  auto item = Item(leased->samples(0), "x");
  item.mutable_trace()->mutable_key()->set_prompt_hash("short");
  v1::CommitTracesRequest commit;
  *commit.mutable_ref() = Ref("a", 1);
  *commit.add_items() = item;
  EXPECT_EQ(store_->CommitTraces(commit, fence_).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Acquire(Ref("a", 1), "", 1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Acquire(Ref("a", 1), std::string("s\0t", 3), 1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Acquire(Ref("a", 1), "s", -1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Acquire(Ref("a", 1), "nothing", 1).status().code(), absl::StatusCode::kNotFound);
  auto gap = Slice(Ref("a", 1), "t", 1, 0, {"p0", "p1"}, true);
  gap.mutable_prompts(1)->set_prompt_index(5);
  EXPECT_EQ(store_->PrepareSampleSet(gap, fence_).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(SampleStoreTest, OpensOnlyOnceAtATime) {
  const auto second = SampleStore::Open({.path = folder_});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable) << second.status();
}

}  // namespace
}  // namespace retort::storage
