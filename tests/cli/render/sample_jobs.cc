#include "tests/cli/render/sample_jobs.h"

#include <google/protobuf/text_format.h>

#include "common/check.h"

namespace retort::cli {
namespace {

v1::Job Parse(const char* text) {
  v1::Job job;
  RETORT_CHECK(google::protobuf::TextFormat::ParseFromString(text, &job));
  return job;
}

}  // namespace

v1::Job TrainingJob() {
  return Parse(R"(
    job_id: "math-3fa2c1" state: JOB_STATE_RUNNING submitted_at { seconds: 1000 }
    stages { stage: STAGE_GENERATE state: STAGE_STATE_SUCCEEDED seconds: 12.3
             outcomes { counts { key: "stop" value: 1000 } counts { key: "length" value: 24 } } }
    stages { stage: STAGE_CURATE state: STAGE_STATE_SUCCEEDED seconds: 0.4
             outcomes { counts { key: "kept" value: 900 } counts { key: "length" value: 20 }
                        counts { key: "wrong_answer" value: 80 } counts { key: "duplicate" value: 0 } } }
    stages { stage: STAGE_TRAIN state: STAGE_STATE_RUNNING seconds: 40
             progress { done: 120 total: 400 unit: "steps" rate_per_second: 3.2 tokens_per_second: 850 loss: 0.412 }
             tasks { ref { task_id: "math-3fa2c1.train.0.0" epoch: 7 } state: TASK_STATE_RUNNING worker_id: "box-1" }
             tasks { ref { task_id: "math-3fa2c1.train.0.1" epoch: 9 } state: TASK_STATE_WAITING failures: 1
                     last_error: "signal 9" wait_reason: "needs 1 cpu slot, 0 free" } }
    stages { stage: STAGE_EVALUATE state: STAGE_STATE_PENDING }
    result { losses { step: 1 loss: 2 grad_norm: 3 learning_rate: 1e-4 }
             losses { step: 2 loss: 0.4 grad_norm: 1.2 learning_rate: 2e-4 eval_loss: 0.5 } }
  )");
}

v1::Job WaitingJob() {
  return Parse(R"(
    job_id: "math-3fa2c1" state: JOB_STATE_QUEUED
    stages { stage: STAGE_TRAIN state: STAGE_STATE_RUNNING
             tasks { ref { task_id: "math-3fa2c1.train.0.0" epoch: 7 } state: TASK_STATE_WAITING
                     wait_reason: "needs 2 cpu slots at once, 1 free" } }
  )");
}

v1::Job FailedJob() {
  return Parse(R"(
    job_id: "math-3fa2c1" state: JOB_STATE_FAILED submitted_at { seconds: 1000 } finished_at { seconds: 1003 }
    message: "teacher.model: /models/x/config.json: rope_type: unknown"
    stages { stage: STAGE_GENERATE state: STAGE_STATE_FAILED seconds: 2
             tasks { ref { task_id: "math-3fa2c1.generate.0.0" epoch: 7 } state: TASK_STATE_FAILED last_error: "rope_type: unknown" } }
    stages { stage: STAGE_CURATE state: STAGE_STATE_PENDING }
  )");
}

v1::Job FinishedJob() {
  return Parse(R"(
    job_id: "math-3fa2c1" state: JOB_STATE_SUCCEEDED submitted_at { seconds: 1000 } finished_at { seconds: 1134 }
    stages { stage: STAGE_GENERATE state: STAGE_STATE_SUCCEEDED seconds: 12.3
             outcomes { counts { key: "stop" value: 1000 } counts { key: "length" value: 24 } } }
    stages { stage: STAGE_TRAIN state: STAGE_STATE_SUCCEEDED seconds: 59.6 }
    result {
      losses { step: 1 loss: 2 grad_norm: 3 learning_rate: 1e-4 }
      losses { step: 2 loss: 0.4 grad_norm: 1.2 learning_rate: 2e-4 eval_loss: 0.5 }
      evaluations { prompts: "/data/test.jsonl" n: 1 prompt_count: 200 base: 0.02 teacher: 1 student: 0.65 }
      evaluations { prompts: "/data/other.jsonl" n: 8 prompt_count: 100 student: 0.125 }
      adapter_sha256: "aa" manifest_sha256: "bb"
      artifacts { name: "adapter" artifact_id: "11" stage: STAGE_TRAIN size_bytes: 10 }
      versions { key: "retort" value: "0.1.0" }
    }
  )");
}

}  // namespace retort::cli
