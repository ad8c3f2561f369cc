// The terminal's view of a job, as whole lines.
#include "cli/render/job_text.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include "cli/render/format.h"
#include "tests/cli/render/sample_jobs.h"

namespace retort::cli {
namespace {

using testing::ElementsAre;

TextOptions Plain(int width = 110) {
  return {.terminal = {.tty = true, .color = false, .unicode = true, .width = width}};
}

TEST(ProgressLinesTest, Training) {
  EXPECT_THAT(ProgressLines(TrainingJob(), Plain()),
              ElementsAre("math-3fa2c1  running",                                      //
                          "  ✓ generate  1,000 stop, 24 length  12s",                  //
                          "  ✓ curate    900 kept, 80 wrong_answer, 20 length  0.4s",  //
                          "  ⠋ train     ━━━━━━━━━━━━━━━━━━━━━━━━  120/400 steps  3.20/s  1m 28s left  loss 0.412  "
                          "850 tokens/s",                         //
                          "    train.0.1 failed once: signal 9",  //
                          "  · evaluate"));
}

TEST(ProgressLinesTest, BarFills) {
  v1::Job job = TrainingJob();
  TextOptions options = Plain();
  options.terminal.unicode = false;
  options.frame = 1;
  EXPECT_EQ(ProgressLines(job, options)[3],
            "  / train     #######-----------------  120/400 steps  3.20/s  1m 28s left  loss 0.412  850 tokens/s");
}

TEST(ProgressLinesTest, LossFitsIntoEightyColumns) {
  EXPECT_EQ(ProgressLines(TrainingJob(), Plain(80))[3],
            "  ⠋ train     ━━━━━━━━━━━━  120/400 steps  3.20/s  1m 28s left  loss 0.412");
}

TEST(ProgressLinesTest, NeverWiderThanTheTerminal) {
  v1::Job job = TrainingJob();
  job.set_message(std::string(300, 'm'));
  for (const bool color : {false, true}) {
    TextOptions options = Plain(60);
    options.terminal.color = color;
    for (const std::string& line : ProgressLines(job, options)) EXPECT_LE(VisibleWidth(line), 59) << line;
  }
}

TEST(ProgressLinesTest, SaysWhyAStageWaits) {
  EXPECT_EQ(ProgressLines(WaitingJob(), Plain())[1], "  ⠋ train     waits: needs 2 cpu slots at once, 1 free");
}

TEST(ProgressLinesTest, FailedJobShowsItsMessage) {
  EXPECT_THAT(ProgressLines(FailedJob(), Plain()),
              ElementsAre("math-3fa2c1  failed in 3.0s",                                 //
                          "  teacher.model: /models/x/config.json: rope_type: unknown",  //
                          "  ✗ generate  failed  2.0s",                                  //
                          "    generate.0.0 failed: rope_type: unknown",                 //
                          "  · curate"));
}

TEST(PlainProgressTest, OneLine) {
  EXPECT_EQ(PlainProgress(TrainingJob()), "train: 120/400 steps, 3.20/s, 1m 28s left, loss 0.412, 850 tokens/s");
  EXPECT_EQ(PlainProgress(WaitingJob()), "train: waits: needs 2 cpu slots at once, 1 free");
  EXPECT_EQ(PlainProgress(FailedJob()),
            "math-3fa2c1 failed in 3.0s: teacher.model: /models/x/config.json: rope_type: unknown");
}

TEST(PlainProgressTest, PrintsOnChangeAndNowAndThen) {
  PlainProgressFilter filter(absl::Seconds(5));
  absl::Time now = absl::FromUnixSeconds(1000);
  v1::Job job = TrainingJob();
  EXPECT_TRUE(filter.Update(job, now).has_value());
  job.mutable_stages(2)->mutable_progress()->set_done(121);
  EXPECT_FALSE(filter.Update(job, now + absl::Seconds(4)).has_value());
  EXPECT_TRUE(filter.Update(job, now + absl::Seconds(5)).has_value());
  EXPECT_FALSE(filter.Update(job, now + absl::Seconds(60)).has_value()) << "nothing moved";
  job.mutable_stages(2)->set_state(v1::STAGE_STATE_SUCCEEDED);
  job.mutable_stages(3)->set_state(v1::STAGE_STATE_RUNNING);
  EXPECT_EQ(filter.Update(job, now + absl::Seconds(61)), "evaluate: running");
}

TEST(StatusTextTest, AddsTasksAndLossCurve) {
  const std::string text = StatusText(TrainingJob(), Plain());
  EXPECT_THAT(text, testing::HasSubstr("\n  tasks train.0.0 on box-1\n"));
  EXPECT_THAT(text, testing::HasSubstr(
                        "\n  loss  █▁  0.4 at step 2, gradient norm 1.2, learning rate 0.0002; validation 0.5 at "
                        "step 2\n"));
}

TEST(ReportTextTest, EndsWithAccuraciesAndOutcomes) {
  EXPECT_EQ(ReportText(FinishedJob(), Plain()),
            "math-3fa2c1  succeeded in 2m 14s\n"
            "\n"
            "  accuracy on  prompts  n  base  teacher  student   gain\n"
            "  test.jsonl       200  1  2.0%   100.0%    65.0%  +63.0\n"
            "  other.jsonl      100  8     -        -    12.5%      -\n"
            "\n"
            "  stage       time  outcomes\n"
            "  generate     12s  1,000 stop, 24 length\n"
            "  train     1m 00s  2 steps, loss 2 to 0.4\n");
}

TEST(WorkersTextTest, OneRowEach) {
  v1::WorkerStatus worker;
  ASSERT_TRUE(google::protobuf::TextFormat::ParseFromString(R"(
    worker_id: "w1" hostname: "box" state: WORKER_STATE_READY
    resources { cpu_slots: 4 cpu_cores: 2 memory_bytes: 24000000000 }
    tasks { task_id: "math-3fa2c1.train.0.0" epoch: 3 }
    last_heartbeat_at { seconds: 99 }
  )",
                                                            &worker));
  EXPECT_EQ(WorkersText({worker}, absl::FromUnixSeconds(100), Plain()),
            "worker  host  state  slots  cores  memory  gpus  failures      seen  tasks\n"
            "w1      box   ready      4      2   24 GB  -            0  1.0s ago  math-3fa2c1.train.0.0\n");
}

}  // namespace
}  // namespace retort::cli
