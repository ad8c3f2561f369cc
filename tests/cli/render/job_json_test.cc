// The JSON that scripts read.
#include "cli/render/job_json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/cli/render/sample_jobs.h"

namespace retort::cli {
namespace {

using nlohmann::json;

TEST(ResultJsonTest, HoldsExactlyTheDocumentedKeys) {
  EXPECT_EQ(ResultJson(FinishedJob()), json::parse(R"({
    "job": "math-3fa2c1",
    "state": "succeeded",
    "outcomes": {"generate": {"stop": 1000, "length": 24}, "train": {}},
    "evaluations": [
      {"prompts": "/data/test.jsonl", "n": 1, "base": 0.02, "teacher": 1.0, "student": 0.65},
      {"prompts": "/data/other.jsonl", "n": 8, "base": null, "teacher": null, "student": 0.125}],
    "accuracies": {"base": 0.02, "teacher": 1.0, "student": 0.65},
    "losses": [
      {"step": 1, "loss": 2.0, "grad_norm": 3.0, "learning_rate": 1e-4},
      {"step": 2, "loss": 0.4, "grad_norm": 1.2, "learning_rate": 2e-4, "eval_loss": 0.5}],
    "adapter_sha256": "aa",
    "manifest_sha256": "bb",
    "seconds_by_stage": {"generate": 12.3, "train": 59.6},
    "versions": {"retort": "0.1.0"}
  })"));
}

TEST(ResultJsonTest, WhatDidNotRunIsNull) {
  const json result = ResultJson(FailedJob());
  EXPECT_EQ(result["state"], "failed");
  EXPECT_TRUE(result["accuracies"]["base"].is_null());
  EXPECT_TRUE(result["adapter_sha256"].is_null());
  EXPECT_EQ(result["evaluations"], json::array());
  EXPECT_EQ(result["losses"], json::array());
  EXPECT_EQ(result["seconds_by_stage"], json::parse(R"({"generate": 2.0})"));
}

TEST(JobJsonTest, StagesAndTasks) {
  const json job = JobToJson(TrainingJob());
  EXPECT_EQ(job["stage"], "train");
  EXPECT_EQ(job["submitted_at"], "1970-01-01T00:16:40.000Z");
  EXPECT_TRUE(job["finished_at"].is_null());
  EXPECT_EQ(job["stages"][2]["progress"]["done"], 120);
  EXPECT_EQ(job["stages"][2]["tasks"][1]["state"], "waiting");
  EXPECT_EQ(job["stages"][2]["tasks"][1]["wait_reason"], "needs 1 cpu slot, 0 free");
}

}  // namespace
}  // namespace retort::cli
