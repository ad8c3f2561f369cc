// The real binary: what it prints and how it ends.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/version.h"
#include "tests/cli/distctl_test.h"

namespace retort::cli {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using ProgramTest = DistctlTest;

TEST_F(ProgramTest, Version) {
  const Ended run = Distctl("version");
  EXPECT_EQ(run.exit_code, 0);
  EXPECT_EQ(run.out, absl::StrCat("distctl ", std::string(kVersion), "\n"));
  EXPECT_EQ(nlohmann::json::parse(Distctl("version --json").out)["version"], std::string(kVersion));
  EXPECT_EQ(nlohmann::json::parse(Distctl("--state-dir x version --json").out)["version"], std::string(kVersion));
}

TEST_F(ProgramTest, WrongArgumentsEndWithTwo) {
  for (const char* arguments : {"", "nonsense", "list --nonsense", "status", "submit", "validate a b", "list --limit 0",
                                "artifacts", "store import x", "export job"}) {
    const Ended run = Distctl(arguments);
    EXPECT_EQ(run.exit_code, 2) << arguments;
    EXPECT_THAT(run.err, HasSubstr("distctl: ")) << arguments;
    EXPECT_EQ(run.out, "") << arguments;
  }
}

TEST_F(ProgramTest, HelpEndsWithZero) {
  EXPECT_EQ(Distctl("--help").exit_code, 0);
  EXPECT_THAT(Distctl("submit --help").out, HasSubstr("--watch"));
}

// generate and score belong to another program, which gets their flags as they are, --help too.
TEST_F(ProgramTest, ModelVerbsRunTheTeacherBesideDistctl) {
  Write("bin/retort-teacher", "#!/bin/sh\necho \"$@\"\nexit 7\n");
  fs::permissions(folder_ / "bin/retort-teacher", fs::perms::owner_all);
  fs::copy_file(fs::path(bin_) / "distctl", folder_ / "bin/distctl");
  bin_ = (folder_ / "bin").string();
  for (const char* before : {"", "--state-dir x "}) {
    const Ended run = Distctl(absl::StrCat(before, "generate --model a --input - --ignore-eos --n 2 --output=-"));
    EXPECT_EQ(run.exit_code, 7);
    EXPECT_EQ(run.out, "generate --model a --input - --ignore-eos --n 2 --output=-\n") << before;
    EXPECT_EQ(Distctl(absl::StrCat(before, "score --help")).out, "score --help\n");
  }
}

TEST_F(ProgramTest, Validate) {
  const Ended run = Distctl("validate job.yaml");
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.out, absl::StrCat("job.yaml: valid; job j: train\n\nloss mask of ", (folder_ / "train.jsonl").string(),
                                  ":1, 5 tokens, 2 trained [so]:\nuser|a|assistant|[b][</s>]\n"));
  const Ended bad = Distctl("validate job.yaml --set student.lora.rank=3 --set student.lora.r=0");
  EXPECT_EQ(bad.exit_code, 2);
  EXPECT_EQ(bad.err,
            "--set student.lora.rank=3: student.lora.rank: unknown key; did you mean \"r\"?\n"
            "--set student.lora.r=0: student.lora.r: 0 is out of range, wants a whole number in [1, 65536]\n");
}

TEST_F(ProgramTest, SetTakesOneArgumentEach) {
  EXPECT_EQ(Distctl("validate --set student.lora.r=4 job.yaml").exit_code, 0);
  EXPECT_EQ(Distctl("validate '--set=student.lora.target_modules=[q_proj, k_proj]' job.yaml").exit_code, 0);
  EXPECT_EQ(Distctl("validate --set 'student.lora.target_modules=[q_proj, k_proj]' job.yaml").exit_code, 0);
}

TEST_F(ProgramTest, ValidateJsonListsErrors) {
  Write("bad.yaml", "name: j\ndataset: [{path: train.jsonl}]\nstudent: {model_name_or_path: model, lora: {rank: 2}}\n");
  const Ended run = Distctl("validate bad.yaml --json");
  EXPECT_EQ(run.exit_code, 2);
  const nlohmann::json document = nlohmann::json::parse(run.out);
  EXPECT_EQ(document["valid"], false);
  EXPECT_EQ(document["errors"][0]["line"], 3);
  EXPECT_EQ(document["errors"][0]["column"], 45);
  EXPECT_EQ(document["errors"][0]["path"], "student.lora.rank");
}

TEST_F(ProgramTest, MissingModelEndsWithTwoAndLeavesNothing) {
  const Ended run = Distctl("submit job.yaml --set student.model_name_or_path=gone");
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_THAT(run.err, HasSubstr("student.model_name_or_path: "));
  EXPECT_THAT(run.err, HasSubstr("/gone does not exist; wants a Hugging Face folder"));
  EXPECT_FALSE(fs::exists(folder_ / "out"));
}

TEST_F(ProgramTest, UsedOutputFolderIsRefused) {
  Write("out/j/result.json", "{\"job\": \"j-000000\"}");
  const Ended run = Distctl("submit job.yaml");
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_THAT(run.err, HasSubstr("out/j already holds a result (result.json); give --overwrite"));
}

TEST_F(ProgramTest, NoCoordinator) {
  const Ended none = Distctl("list");
  EXPECT_EQ(none.exit_code, 1);
  EXPECT_THAT(none.err, HasSubstr("start one with `distctl local up`"));
  Write("state/token", "0123456789abcdef0123456789abcdef");
  fs::permissions(folder_ / "state/token", fs::perms::owner_read);
  const Ended dead = Distctl("--coordinator 127.0.0.1:1 list");
  EXPECT_EQ(dead.exit_code, 1);
  EXPECT_EQ(dead.err, "distctl: no coordinator answers at 127.0.0.1:1; start one with `distctl local up`\n");
}

TEST_F(ProgramTest, PlanCountsWithoutACoordinator) {
  const Ended run = Distctl("plan job.yaml --json");
  EXPECT_EQ(run.exit_code, 0) << run.err;
  const nlohmann::json plan = nlohmann::json::parse(run.out);
  EXPECT_EQ(plan["train"]["rows"], 1);
  EXPECT_EQ(plan["train"]["batch"], 8);
  EXPECT_EQ(plan["memory_bytes"]["student"]["weights"], 4);
}

}  // namespace
}  // namespace retort::cli
