#include "curate/curation.h"

#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "common/file.h"
#include "common/hash.h"
#include "curate/judge.h"

namespace retort::curate {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;

class CurationTest : public testing::Test {
 protected:
  CurationTest() : folder_(testing::TempDir() + "/retort_curation_" + std::to_string(getpid())) {
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    spec_.mutable_verify()->set_kind(v1::VERIFIER_KIND_NUMBER);
    spec_.set_dedup(v1::DEDUP_METHOD_EXACT);
  }
  ~CurationTest() override { std::filesystem::remove_all(folder_); }

  static v1::Prompt MakePrompt(int index, const std::string& answer) {
    v1::Prompt prompt;
    prompt.set_prompt_index(index);
    prompt.set_prompt_hash(ToBytes(Sha256Of(std::to_string(index))));
    prompt.set_messages_json(
        nlohmann::json::array({{{"role", "user"}, {"content", "q" + std::to_string(index)}}}).dump());
    prompt.set_answer(answer);
    return prompt;
  }
  static v1::Trace MakeTrace(const v1::Prompt& prompt, int sample, const std::string& text,
                             const std::string& finish = "stop") {
    v1::Trace trace;
    trace.mutable_key()->set_prompt_hash(prompt.prompt_hash());
    trace.mutable_key()->set_sample_index(sample);
    trace.set_text(text);
    trace.set_finish_reason(finish);
    return trace;
  }

  const std::string folder_;
  v1::CurateSpec spec_;
};

TEST_F(CurationTest, KeepsWhatIsRightAndCountsTheRestByCause) {
  auto curation = Curation::Make(spec_, folder_).value();
  const v1::Prompt p = MakePrompt(0, "4"), q = MakePrompt(1, "");
  ASSERT_TRUE(curation->Add(p, MakeTrace(p, 0, "<think>2+2</think>\\boxed{4}")).ok());
  ASSERT_TRUE(curation->Add(p, MakeTrace(p, 1, "<think>2+2</think>\n\\boxed{4}")).ok());
  ASSERT_TRUE(curation->Add(p, MakeTrace(p, 2, "<think>2+2</think> \\boxed{4}")).ok());
  ASSERT_TRUE(curation->Add(p, MakeTrace(p, 3, "\\boxed{5}")).ok());
  ASSERT_TRUE(curation->Add(p, MakeTrace(p, 4, "no idea")).ok());
  ASSERT_TRUE(curation->Add(p, MakeTrace(p, 5, "\\boxed{4}", "length")).ok());
  ASSERT_TRUE(curation->Add(p, MakeTrace(p, 6, "", "error")).ok());
  ASSERT_TRUE(curation->Add(q, MakeTrace(q, 0, "\\boxed{4}")).ok());
  const auto dataset = curation->Finish();
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_THAT(dataset->outcomes,
              ElementsAre(Pair("duplicate", 1), Pair("finish_error", 1), Pair("finish_length", 1), Pair("kept", 2),
                          Pair("no_answer", 1), Pair("no_reference", 1), Pair("wrong_answer", 1)));
  EXPECT_EQ(ReadFile(folder_ + "/train.jsonl").value(),
            "{\"messages\":[{\"content\":\"q0\",\"role\":\"user\"},{\"role\":\"assistant\",\"content\":\"<think>2+2</"
            "think>\\\\boxed{4}\"}]}\n"
            "{\"messages\":[{\"content\":\"q0\",\"role\":\"user\"},{\"role\":\"assistant\",\"content\":\"<think>2+2</"
            "think>\\n\\\\boxed{4}\"}]}\n");
  EXPECT_EQ(ReadFile(folder_ + "/validation.jsonl").value(), "");
}

TEST_F(CurationTest, PutsReasoningThatCameApartBeforeTheText) {
  auto curation = Curation::Make(spec_, folder_).value();
  const v1::Prompt p = MakePrompt(0, "4");
  v1::Trace trace = MakeTrace(p, 0, "\\boxed{4}");
  trace.set_reasoning("two and two");
  ASSERT_TRUE(curation->Add(p, trace).ok());
  ASSERT_TRUE(curation->Finish().ok());
  EXPECT_THAT(ReadFile(folder_ + "/train.jsonl").value(),
              HasSubstr("<think>\\ntwo and two\\n</think>\\n\\n\\\\boxed{4}"));
}

TEST_F(CurationTest, DropsEmptyTracesWhateverIsVerified) {
  spec_.mutable_verify()->set_kind(v1::VERIFIER_KIND_UNSPECIFIED);
  spec_.add_finish_reason("stop");
  spec_.add_finish_reason("length");
  auto curation = Curation::Make(spec_, folder_).value();
  const v1::Prompt p = MakePrompt(0, "");
  int sample = 0;
  for (const char* text : {"", " \n", "<think></think>", "<think>2+2</think>\n", "thought</think>"})
    ASSERT_TRUE(curation->Add(p, MakeTrace(p, sample++, text)).ok());
  v1::Trace apart = MakeTrace(p, sample++, "");
  apart.set_reasoning("two and two");
  ASSERT_TRUE(curation->Add(p, apart).ok());
  ASSERT_TRUE(curation->Add(p, MakeTrace(p, sample++, "4")).ok());
  // Asked for by its finish reason.
  ASSERT_TRUE(curation->Add(p, MakeTrace(p, sample++, "<think>2 and", "length")).ok());
  const auto dataset = curation->Finish();
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_THAT(dataset->outcomes, ElementsAre(Pair("empty", 6), Pair("kept", 2)));
}

TEST_F(CurationTest, KeepsAllTracesOfAPromptInOneSplitWithExactShares) {
  spec_.mutable_split()->set_train(0.8);
  spec_.mutable_split()->set_validation(0.2);
  spec_.set_dedup(v1::DEDUP_METHOD_UNSPECIFIED);
  auto curation = Curation::Make(spec_, folder_).value();
  for (int i = 0; i < 50; ++i) {
    const v1::Prompt p = MakePrompt(i, "4");
    for (int sample = 0; sample < 3; ++sample) ASSERT_TRUE(curation->Add(p, MakeTrace(p, sample, "\\boxed{4}")).ok());
  }
  const auto dataset = curation->Finish();
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_EQ(dataset->train.size(), 120u);
  EXPECT_EQ(dataset->validation.size(), 30u);
  std::set<std::string> train, validation;
  for (const auto& key : dataset->train) train.insert(key.prompt_hash());
  for (const auto& key : dataset->validation) validation.insert(key.prompt_hash());
  EXPECT_EQ(train.size(), 40u);
  EXPECT_EQ(validation.size(), 10u);
  for (const auto& hash : validation) EXPECT_FALSE(train.contains(hash));
}

TEST_F(CurationTest, SaysWhatDroppedEverything) {
  auto curation = Curation::Make(spec_, folder_).value();
  const v1::Prompt p = MakePrompt(0, "4");
  ASSERT_TRUE(curation->Add(p, MakeTrace(p, 0, "\\boxed{5}")).ok());
  const auto dataset = curation->Finish();
  EXPECT_EQ(dataset.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(dataset.status().message()), HasSubstr("wrong_answer 1"));
}

TEST(SplitPrompts, IsAPureFunctionOfHashesSharesAndSeed) {
  std::vector<std::string> hashes;
  for (int i = 0; i < 101; ++i) hashes.push_back(ToBytes(Sha256Of("p" + std::to_string(i))));
  v1::SplitSpec shares;
  shares.set_train(0.5);
  shares.set_validation(0.25);
  const auto splits = SplitPrompts(hashes, shares, 7).value();
  EXPECT_EQ(std::count(splits.begin(), splits.end(), Split::kTrain), 51);
  EXPECT_EQ(std::count(splits.begin(), splits.end(), Split::kValidation), 25);
  std::vector<std::string> reversed(hashes.rbegin(), hashes.rend());
  auto again = SplitPrompts(reversed, shares, 7).value();
  std::reverse(again.begin(), again.end());
  EXPECT_EQ(again, splits);
  EXPECT_NE(SplitPrompts(hashes, shares, 8).value(), splits);

  shares.set_train(0.99);
  shares.set_validation(0.01);
  const auto two = SplitPrompts({hashes[0], hashes[1]}, shares, 7).value();
  EXPECT_EQ(std::count(two.begin(), two.end(), Split::kValidation), 1);
  EXPECT_EQ(SplitPrompts({hashes[0]}, shares, 7).value(), std::vector<Split>{Split::kTrain});
  shares.set_train(0.995);
  EXPECT_FALSE(SplitPrompts(hashes, shares, 7).ok());
}

TEST(ModelScore, CountsMissingAndFailedSamplesAsWrong) {
  v1::VerifySpec spec;
  spec.set_kind(v1::VERIFIER_KIND_NUMBER);
  const Verifier verifier = Verifier::Make(spec).value();
  ModelScore score("base", verifier);
  v1::Prompt prompt;
  prompt.set_answer("4");
  v1::Trace trace;
  trace.set_finish_reason("stop");
  trace.set_text("\\boxed{4}");
  EXPECT_TRUE(score.Add(prompt, trace));
  trace.set_text("\\boxed{5}");
  EXPECT_FALSE(score.Add(prompt, trace));
  trace.set_text("hm");
  EXPECT_FALSE(score.Add(prompt, trace));
  trace.set_finish_reason("error");
  trace.set_text("\\boxed{4}");
  EXPECT_FALSE(score.Add(prompt, trace));
  trace.set_finish_reason("length");
  trace.set_text("2 and 2 is 4, so");
  EXPECT_FALSE(score.Add(prompt, trace));
  EXPECT_DOUBLE_EQ(score.Finish(9), 1.0 / 9);
  std::map<std::string, int64_t> outcomes;
  score.AddOutcomes(&outcomes);
  EXPECT_THAT(outcomes, ElementsAre(Pair("base_correct", 1), Pair("base_error", 1), Pair("base_missing", 4),
                                    Pair("base_no_answer", 2), Pair("base_wrong", 1)));
}

TEST(UserTurn, IsTheLastOfTheUser) {
  v1::Prompt prompt;
  prompt.set_messages_json(
      R"([{"role":"system","content":"s"},{"role":"user","content":"a"},{"role":"user","content":"b"}])");
  EXPECT_EQ(UserTurn(prompt), "b");
  prompt.set_messages_json("not json");
  EXPECT_EQ(UserTurn(prompt), "not json");
}

}  // namespace
}  // namespace retort::curate
