// What a job would run, before anything is held: counts, batches, memory and disk. Pure but for the model folders it
// looks into.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/plan/model_facts.h"
#include "cli/render/terminal.h"
#include "model/tokenizer.h"
#include "retort/v1/job.pb.h"

namespace retort::cli {

struct GeneratePlan {
  int64_t prompts = 0;
  int n = 1;
  int64_t samples = 0;  // prompts * n
  int min_replicas = 1;
  int max_replicas = 1;
};

struct TrainPlan {
  int64_t rows = 0;  // of training; an upper bound when they are still to be generated
  bool rows_exact = false;
  int64_t validation_rows = 0;
  int batch = 0;          // sequences of one step: per_device_train_batch_size * gradient_accumulation_steps
  int micro_batches = 0;  // of one step
  int min_workers = 1;
  int max_workers = 1;      // that are ever placed: at most micro_batches
  std::vector<int> shares;  // micro-batches of each of max_workers in one step
  int64_t steps = 0;        // an upper bound when rows_exact is false
  double epochs = 0;
};

// Bytes that one process of a role needs; rough, the formulas stand in docs/cli.md.
struct MemoryPlan {
  std::string role;  // "teacher", "student"
  bool gpu = false;  // what it is reckoned for; `device: auto` counts as a CPU
  int64_t weights = 0;
  int64_t kv_cache = 0;
  int64_t adapter = 0;  // weights of the LoRA, and of modules that are trained whole
  int64_t gradients = 0;
  int64_t optimizer = 0;
  int64_t activations = 0;  // logits and their gradient included
  int64_t total = 0;
};

struct DiskPlan {
  int64_t traces_at_most = 0;
  int64_t checkpoint = 0;  // each
  int64_t merged = 0;
  int64_t gguf = 0;
};

struct JobPlan {
  std::string name;
  std::vector<std::string> stages;
  std::optional<GeneratePlan> generate;
  std::optional<TrainPlan> train;
  struct Evaluation {
    std::string prompts;
    int64_t rows = 0;
    int n = 1;
    int models = 0;
    int64_t samples = 0;  // rows * n * models
  };
  std::vector<Evaluation> evaluations;
  std::vector<MemoryPlan> memory;
  DiskPlan disk;
  std::vector<std::string> notes;  // what a user should know before submitting
};

// How many rows each JSONL file that a spec names has; the plan needs nothing else of them.
struct RowCounts {
  std::vector<int64_t> prompts;      // by index in spec.prompts
  std::vector<int64_t> evaluations;  // by index in spec.evaluate
};

// `teacher` and `student` are null where the model is not on this machine. `additions`: what student.add_tokens comes
// to.
JobPlan MakePlan(const v1::JobSpec& spec, const std::vector<std::string>& stages, const RowCounts& rows,
                 const ModelFacts* teacher, const ModelFacts* student, const TokenAdditions& additions = {});

nlohmann::json PlanToJson(const JobPlan& plan);
std::string PlanToText(const JobPlan& plan, const Terminal& terminal);

}  // namespace retort::cli
