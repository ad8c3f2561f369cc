// distctl against a real coordinator without workers: what can be seen of a job before anything runs, and the sample
// store.
#include <gmock/gmock.h>
#include <signal.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/process.h"
#include "tests/cli/distctl_test.h"

namespace retort::cli {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

class CoordinatorTest : public DistctlTest {
 protected:
  void SetUp() override {
    DistctlTest::SetUp();
    Write("state/token", "0123456789abcdef0123456789abcdef");
    fs::permissions(folder_ / "state/token", fs::perms::owner_read);
    Start("127.0.0.1:0");
    environment_ = "RETORT_COORDINATOR=" + address_;
  }
  void TearDown() override {
    Stop();
    DistctlTest::TearDown();
  }

  void Start(const std::string& listen) {
    const fs::path address_file = folder_ / "address";
    fs::remove(address_file);
    SpawnOptions options;
    options.argv = {bin_ + "/retort-coordinator",
                    "--state-dir",
                    (folder_ / "coordinator").string(),
                    "--listen",
                    listen,
                    "--token-file",
                    (folder_ / "state/token").string(),
                    "--address-file",
                    address_file.string()};
    options.environment = EnvironmentWith({});
    options.die_with_thread = true;
    auto child = SpawnProcess(options);
    ASSERT_TRUE(child.ok()) << child.status();
    coordinator_ = *std::move(child);
    for (int i = 0; i < 2000 && !fs::exists(address_file); ++i) absl::SleepFor(absl::Milliseconds(10));
    address_ = std::string(absl::StripAsciiWhitespace(Read(address_file)));
    ASSERT_FALSE(address_.empty());
  }
  void Stop() {
    if (coordinator_.pid == 0) return;
    kill(coordinator_.pid, SIGKILL);
    ASSERT_TRUE(WaitProcess(coordinator_.pid, absl::Seconds(10)).ok());
    coordinator_.pid = 0;
  }

  std::string Submit(const std::string& arguments = "") {
    const Ended run = Distctl("submit job.yaml " + arguments);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return std::string(absl::StripAsciiWhitespace(run.out));
  }
  json Json(const std::string& arguments) {
    const Ended run = Distctl(arguments + " --json");
    EXPECT_EQ(run.exit_code, 0) << run.err;
    json document = json::parse(run.out, nullptr, false);
    EXPECT_FALSE(document.is_discarded()) << run.out;
    return document;
  }

  // Until what the running call of distctl says on its error stream has `text` in it.
  void AwaitError(const std::string& text) {
    for (int i = 0; i < 3000; ++i) {
      if (absl::StrContains(Read(folder_ / "err.txt"), text)) return;
      absl::SleepFor(absl::Milliseconds(20));
    }
    ADD_FAILURE() << "no \"" << text << "\" in: " << Read(folder_ / "err.txt");
  }
  // `distctl cancel j`, which is 0 when it could; beside the test's own call of distctl.
  int Cancel() {
    return std::system(absl::StrCat("RETORT_STATE_DIR=", (folder_ / "state").string(), " ", environment_, " ", bin_,
                                    "/distctl cancel j >/dev/null 2>&1")
                           .c_str());
  }

  ChildProcess coordinator_;
  std::string address_;
};

TEST_F(CoordinatorTest, AJobWaitsIsCancelledAndTakenUpAgain) {
  const std::string job = Submit();
  EXPECT_THAT(job, testing::MatchesRegex("j-[0-9a-f]{6}"));
  EXPECT_THAT(Distctl("list").out, HasSubstr(job));
  EXPECT_EQ(Json("list")["jobs"][0]["job"], job);

  const json status = Json("status j");
  EXPECT_EQ(status["job"], job);
  EXPECT_EQ(status["stages"][0]["stage"], "train");
  EXPECT_THAT(Distctl("status " + job).out, HasSubstr("train     waits: "));

  EXPECT_EQ(Distctl("cancel " + job).out, job + " cancelled\n");
  EXPECT_EQ(Json("status " + job)["state"], "cancelled");
  const Ended pull = Distctl("artifacts pull " + job);
  EXPECT_EQ(pull.exit_code, 0) << pull.err;
  const json result = json::parse(Read(folder_ / "out/j/result.json"));
  EXPECT_EQ(result["job"], job);
  EXPECT_EQ(result["state"], "cancelled");
  // The same job may be fetched again, another one not.
  EXPECT_EQ(Distctl("artifacts pull " + job).exit_code, 0);
  const std::string other = Submit("--overwrite");
  EXPECT_EQ(Distctl("artifacts pull " + other).exit_code, 2);

  EXPECT_EQ(Distctl("resume " + job).exit_code, 0);
  EXPECT_NE(Json("status " + job)["state"], "cancelled");
}

TEST_F(CoordinatorTest, WatchEndsWithOneWhenTheJobIsCancelled) {
  std::thread canceller([this] {
    AwaitError(" train: waits: ");
    EXPECT_EQ(Cancel(), 0);
  });
  const Ended run = Distctl("submit --watch job.yaml");
  canceller.join();
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.out, HasSubstr("cancelled"));
  EXPECT_THAT(run.err, testing::ContainsRegex("[0-9:]+ train: waits: "));
  EXPECT_TRUE(fs::exists(folder_ / "out/j/result.json"));
}

TEST_F(CoordinatorTest, ControlCDetaches) {
  const std::string watch = folder_ / "watch.txt";
  const Ended run = Distctl(absl::StrCat("submit --watch job.yaml >/dev/null 2>", watch,
                                         " & pid=$!; for i in $(seq 3000); do grep -q waits: ", watch,
                                         " && break; sleep 0.02; done; kill -INT $pid; wait $pid"));
  EXPECT_EQ(run.exit_code, 130) << Read(watch);
  EXPECT_THAT(Read(watch), HasSubstr("detached; the job goes on"));
  EXPECT_NE(Json("status j")["state"], "cancelled");
}

TEST_F(CoordinatorTest, TheSameRequestIsOneJob) {
  EXPECT_EQ(Submit("--request-id once"), Submit("--request-id once"));
  EXPECT_NE(Submit("--request-id twice"), Submit("--request-id once"));
}

TEST_F(CoordinatorTest, WatchSurvivesARestart) {
  std::thread restarter([this] {
    AwaitError(" train: waits: ");
    Stop();
    AwaitError("the coordinator is away; waiting for it");
    Start(address_);
    EXPECT_EQ(Cancel(), 0);
    // The coordinator dies with the thread that started it.
    for (int i = 0; i < 3000 && !fs::exists(folder_ / "out/j/result.json"); ++i) absl::SleepFor(absl::Milliseconds(20));
    absl::SleepFor(absl::Milliseconds(500));
    Stop();
  });
  const Ended run = Distctl("submit --watch job.yaml");
  restarter.join();
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.out, HasSubstr("cancelled"));
}

TEST_F(CoordinatorTest, UnknownJob) {
  for (const char* verb : {"status", "cancel", "resume", "logs", "artifacts ls", "artifacts pull"}) {
    const Ended run = Distctl(absl::StrCat(verb, " nobody"));
    EXPECT_EQ(run.exit_code, 1) << verb;
    EXPECT_EQ(run.err, "distctl: there is no job \"nobody\"; `distctl list` shows them\n") << verb;
  }
}

TEST_F(CoordinatorTest, WrongToken) {
  Write("other", "ffffffffffffffffffffffffffffffff");
  fs::permissions(folder_ / "other", fs::perms::owner_read);
  const Ended run = Distctl("--token-file other list");
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("does not accept the token"));
}

TEST_F(CoordinatorTest, TheStoreGivesBackWhatItTook) {
  const std::string rows =
      R"({"messages": [{"role": "user", "content": "1+1"},  {"role": "assistant", "content": "2"}], "source": "x"})"
      "\n"
      R"({"messages":[{"role":"user","content":"a\u00e9"},{"role":"assistant","content":"b"}]})"
      "\n";
  Write("rows.jsonl", rows);
  const json imported = Json("store import rows.jsonl --name mine");
  EXPECT_EQ(imported["stored"], 2);
  EXPECT_EQ(Json("store ls")["sets"][0]["set"], "import/mine");
  EXPECT_EQ(Json("store stats")["traces"], 2);
  EXPECT_EQ(Distctl("store export import/mine --output back.jsonl").exit_code, 0);
  EXPECT_EQ(Read(folder_ / "back.jsonl"), rows);
  EXPECT_THAT(Distctl("store cat import/mine").out, HasSubstr("1+1\n2\n"));
  const Ended cat = Distctl("store cat import/mine --limit 1 --json");
  EXPECT_EQ(cat.exit_code, 0) << cat.err;
  EXPECT_EQ(json::parse(cat.out)["text"], "2");
  EXPECT_EQ(Json("store verify")["sound"], true);
  EXPECT_EQ(Distctl("store export import/none --output x.jsonl").exit_code, 1);
  EXPECT_FALSE(fs::exists(folder_ / "x.jsonl"));
}

TEST_F(CoordinatorTest, NoWorkers) {
  EXPECT_EQ(Distctl("workers").out, "no workers; `distctl local up` starts one on this machine\n");
  EXPECT_EQ(Json("workers")["workers"], json::array());
}

}  // namespace
}  // namespace retort::cli
