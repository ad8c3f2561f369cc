#include "curate/answer.h"

#include <gtest/gtest.h>

#include <string>

namespace retort::curate {
namespace {

Verifier Make(v1::VerifierKind kind, const std::string& pattern = "") {
  v1::VerifySpec spec;
  spec.set_kind(kind);
  spec.set_answer_pattern(pattern);
  return Verifier::Make(spec).value();
}

TEST(AfterThinking, TakesWhatFollowsTheLastThought) {
  EXPECT_EQ(AfterThinking("<think>a</think>b"), "b");
  EXPECT_EQ(AfterThinking("a</think>b</think>c"), "c");
  EXPECT_EQ(AfterThinking("plain"), "plain");
  EXPECT_FALSE(AfterThinking("<think>never closed \\boxed{1}").has_value());
  EXPECT_FALSE(AfterThinking("<think>a</think>b<think>c").has_value());
}

TEST(LastBoxed, BalancesBraces) {
  EXPECT_EQ(LastBoxed("\\boxed{1} and \\boxed{\\frac{1}{2}}"), "\\frac{1}{2}");
  EXPECT_EQ(LastBoxed("\\boxed {x}"), "x");
  EXPECT_EQ(LastBoxed("\\fbox{7}"), "7");
  EXPECT_EQ(LastBoxed("\\boxed{\\{1\\}}"), "\\{1\\}");
  EXPECT_EQ(LastBoxed("\\boxed{3} then \\boxed{4"), "3");
  EXPECT_FALSE(LastBoxed("\\boxed{never").has_value());
  EXPECT_FALSE(LastBoxed("boxed{1}").has_value());
}

TEST(Verifier, ComparesNumbers) {
  const Verifier verifier = Make(v1::VERIFIER_KIND_NUMBER);
  EXPECT_EQ(verifier.Verify("<think>7</think>It is \\boxed{1,000}.", "1000"), Verdict::kCorrect);
  EXPECT_EQ(verifier.Verify("<think>1000</think>It is \\boxed{7}.", "1000"), Verdict::kWrong);
  EXPECT_EQ(verifier.Verify("The answer is 1000.", "1e3"), Verdict::kCorrect);
  EXPECT_EQ(verifier.Verify("<think>1000</think>I don't know.", "1000"), Verdict::kNoAnswer);
  EXPECT_EQ(verifier.Verify("<think>the answer is 1000", "1000"), Verdict::kNoAnswer);
  EXPECT_EQ(verifier.Verify("\\boxed{1000}", ""), Verdict::kNoReference);
  EXPECT_EQ(verifier.Verify("\\boxed{1000}", "a thousand"), Verdict::kNoReference);
  EXPECT_EQ(verifier.Verify("\\boxed{x+1}", "x+1"), Verdict::kCorrect);
  EXPECT_EQ(verifier.Verify("\\boxed{x+1}", "5"), Verdict::kWrong);
}

TEST(Verifier, TakesNoNumberOnTheWayForTheAnswerOfATruncatedTrace) {
  const Verifier verifier = Make(v1::VERIFIER_KIND_NUMBER);
  const bool truncated = true;
  EXPECT_EQ(verifier.Verify("first 3 + 4 = 7, then", "7", truncated), Verdict::kNoAnswer);
  EXPECT_EQ(verifier.Verify("first 3 + 4 = 7, then", "7"), Verdict::kCorrect);
  EXPECT_EQ(verifier.Verify("<think>a</think>It is 7", "7", truncated), Verdict::kNoAnswer);
  EXPECT_EQ(verifier.Verify("<think>a</think>It is \\boxed{7}, beca", "7", truncated), Verdict::kCorrect);
  EXPECT_EQ(verifier.Verify("a</think>\\boxed{8} and so", "7", truncated), Verdict::kWrong);
  EXPECT_EQ(verifier.Verify("<think>so \\boxed{7}, but wait", "7", truncated), Verdict::kNoAnswer);
  EXPECT_EQ(Make(v1::VERIFIER_KIND_NUMBER, "= (\\d+)").Verify("3 + 4 = 7, th", "7", truncated), Verdict::kCorrect);
}

TEST(Verifier, ComparesTextAndPatterns) {
  EXPECT_EQ(Make(v1::VERIFIER_KIND_EXACT).Verify("\\boxed{ yes }", "yes "), Verdict::kCorrect);
  EXPECT_EQ(Make(v1::VERIFIER_KIND_EXACT).Verify("\\boxed{Yes}", "yes"), Verdict::kWrong);
  EXPECT_EQ(Make(v1::VERIFIER_KIND_EXACT).Verify("yes", "yes"), Verdict::kNoAnswer);
  EXPECT_EQ(Make(v1::VERIFIER_KIND_REGEX).Verify("\\boxed{abc}", "a.c"), Verdict::kCorrect);
  EXPECT_EQ(Make(v1::VERIFIER_KIND_REGEX).Verify("\\boxed{abcd}", "a.c"), Verdict::kWrong);
  EXPECT_EQ(Make(v1::VERIFIER_KIND_REGEX).Verify("\\boxed{abcd}", "a(c"), Verdict::kNoReference);
  EXPECT_EQ(Make(v1::VERIFIER_KIND_UNSPECIFIED).Verify("anything", ""), Verdict::kCorrect);
}

TEST(Verifier, TakesTheAnswerFromAPattern) {
  const Verifier verifier = Make(v1::VERIFIER_KIND_EXACT, "Answer: (\\w+)");
  EXPECT_EQ(verifier.Verify("<think>Answer: no</think>Answer: maybe\nAnswer: yes", "yes"), Verdict::kCorrect);
  EXPECT_EQ(verifier.Verify("\\boxed{yes}", "yes"), Verdict::kNoAnswer);
  EXPECT_EQ(Make(v1::VERIFIER_KIND_NUMBER, "\\d+$").Verify("1 2 3", "3"), Verdict::kCorrect);
  EXPECT_EQ(Make(v1::VERIFIER_KIND_NUMBER, "x*").Extract("axxb"), "");
  v1::VerifySpec broken;
  broken.set_answer_pattern("(");
  EXPECT_EQ(Verifier::Make(broken).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace retort::curate
