#include "cli/plan/plan.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace retort::cli {
namespace {

// floor(weight * rows), as every stage takes it.
int64_t Weighted(double weight, int64_t rows) {
  return static_cast<int64_t>(std::floor(weight * static_cast<double>(rows)));
}

// Of a GGUF type, about: some matrices of q4_k_m are wider.
double BytesPerWeight(const std::string& type) {
  if (type.empty()) return 0.0;
  if (type == "f32") return 4.0;
  if (type == "q8_0") return 1.07;
  return type == "q4_k_m" ? 0.61 : 2.0;
}

GeneratePlan PlanGenerate(const v1::JobSpec& spec, const RowCounts& rows) {
  GeneratePlan plan;
  for (int i = 0; i < spec.prompts_size(); ++i) plan.prompts += Weighted(spec.prompts(i).weight(), rows.prompts[i]);
  plan.n = spec.teacher().sampling().n();
  plan.samples = plan.prompts * plan.n;
  plan.min_replicas = spec.teacher().workers().min();
  plan.max_replicas = spec.teacher().workers().max();
  return plan;
}

TrainPlan PlanTrain(const v1::JobSpec& spec, const std::optional<GeneratePlan>& generate) {
  const v1::TrainingSpec& training = spec.student().training();
  TrainPlan plan;
  if (generate.has_value()) {
    const double validation = spec.curate().split().validation();
    plan.validation_rows = std::llround(validation * static_cast<double>(generate->samples));
    plan.rows = generate->samples - plan.validation_rows;
  } else {
    plan.rows_exact = true;
    for (const v1::DatasetSource& source : spec.dataset()) {
      (source.split() == "validation" ? plan.validation_rows : plan.rows) += Weighted(source.weight(), source.rows());
    }
  }
  plan.micro_batches = training.gradient_accumulation_steps();
  plan.batch = training.per_device_train_batch_size() * plan.micro_batches;
  plan.min_workers = spec.student().workers().min();
  plan.max_workers = std::min(spec.student().workers().max(), plan.micro_batches);
  for (int worker = 0; worker < plan.max_workers; ++worker) {
    plan.shares.push_back(plan.micro_batches / plan.max_workers +
                          (worker < plan.micro_batches % plan.max_workers ? 1 : 0));
  }
  const int64_t steps_per_epoch = (plan.rows + plan.batch - 1) / plan.batch;
  plan.epochs = training.num_train_epochs();
  plan.steps = static_cast<int64_t>(std::ceil(plan.epochs * static_cast<double>(steps_per_epoch)));
  if (training.max_steps() > 0) {
    plan.steps = training.max_steps();
    plan.epochs = steps_per_epoch > 0 ? static_cast<double>(plan.steps) / static_cast<double>(steps_per_epoch) : 0;
  }
  return plan;
}

MemoryPlan TeacherMemory(const v1::TeacherSpec& teacher, const ModelFacts& model) {
  MemoryPlan memory{.role = "teacher", .gpu = teacher.device() == "cuda"};
  const int64_t element = teacher.dtype() == "bfloat16" || (teacher.dtype().empty() && memory.gpu) ? 2 : 4;
  const int64_t context = std::min<int64_t>(model.max_positions, teacher.sampling().max_tokens() + 512);
  memory.weights = model.parameters * element;
  memory.kv_cache =
      2 * model.layers * model.key_value_heads * model.head_dim * element * context * teacher.batch_size();
  memory.activations = int64_t{teacher.batch_size()} * model.vocab_size * 4;
  memory.total = memory.weights + memory.kv_cache + memory.activations;
  return memory;
}

// Of the base: linear modules as they are kept, all else in `element` bytes, and one matrix that is widened for its
// use.
int64_t BaseBytes(const v1::StudentSpec& student, const ModelFacts& model, int64_t element) {
  double each = static_cast<double>(element);
  if (model.quantised_parameters > 0) {
    // What such a folder has in full stays so.
  } else if (student.load_in_8bit()) {
    each = 1.0;
  } else if (student.load_in_4bit()) {
    // A scale for each 64 values: 4 bytes, or one and 4 for each 256 of them.
    each = student.bnb_4bit_use_double_quant() ? 0.5 + (1.0 + 4.0 / 256) / 64 : 0.5 + 4.0 / 64;
  }
  const int64_t others = model.parameters - model.linear_parameters;
  const int64_t plain = model.linear_parameters - model.quantised_parameters;
  const bool widens = model.quantised_parameters > 0 || student.load_in_4bit() || student.load_in_8bit();
  return others * element + std::llround(static_cast<double>(plain) * each) + model.quantised_bytes +
         (widens ? model.largest_linear * element : 0);
}

MemoryPlan StudentMemory(const v1::StudentSpec& student, const ModelFacts& model, int64_t adapter_parameters) {
  const v1::TrainingSpec& training = student.training();
  MemoryPlan memory{.role = "student", .gpu = student.device() == "cuda"};
  const bool half = training.has_bf16() ? training.bf16() : memory.gpu;
  const int64_t element = half ? 2 : 4;
  const int64_t length =
      training.max_length() > 0 ? std::min<int64_t>(training.max_length(), model.max_positions) : model.max_positions;
  const int64_t tokens = length * training.per_device_train_batch_size();
  memory.weights = BaseBytes(student, model, element);
  memory.adapter = adapter_parameters * 4;
  memory.gradients = adapter_parameters * 4;
  memory.optimizer = adapter_parameters * 8;
  // Kept for the backward pass: about 8 vectors of the hidden size and 4 of the intermediate one a layer; logits and
  // their gradient in f32.
  memory.activations = tokens * model.layers * (8 * model.hidden_size + 4 * model.intermediate_size) * element +
                       2 * tokens * model.vocab_size * 4;
  memory.total = memory.weights + memory.adapter + memory.gradients + memory.optimizer + memory.activations;
  return memory;
}

// Parameters that are trained whole beside the LoRA.
int64_t WholeModules(const v1::StudentSpec& student, const ModelFacts& model, const TokenAdditions& additions) {
  const auto& given = student.lora().modules_to_save();
  std::vector<std::string> modules(given.begin(), given.end());
  if (additions.any_new()) modules.insert(modules.end(), {"embed_tokens", "lm_head"});
  return model.WholeParameters(modules, additions.rows, additions.any_new() || student.lora().ensure_weight_tying());
}

}  // namespace

JobPlan MakePlan(const v1::JobSpec& spec, const std::vector<std::string>& stages, const RowCounts& rows,
                 const ModelFacts* teacher, const ModelFacts* student, const TokenAdditions& additions) {
  JobPlan plan{.name = spec.name(), .stages = stages};
  const bool generates = spec.has_teacher() && spec.prompts_size() > 0;
  if (generates) {
    plan.generate = PlanGenerate(spec, rows);
    // Four bytes a token id and about four of text.
    plan.disk.traces_at_most = plan.generate->samples * spec.teacher().sampling().max_tokens() * 8;
  }
  if (spec.has_student()) {
    plan.train = PlanTrain(spec, plan.generate);
    const int wanted = spec.student().workers().max();
    if (wanted > plan.train->micro_batches) {
      plan.notes.push_back(absl::StrCat(
          "student.workers.max is ", wanted, ", but a step has ", plan.train->micro_batches,
          " micro-batches (student.training.gradient_accumulation_steps): no more workers than that are placed"));
    }
    if (plan.train->rows > 0 && plan.train->rows < plan.train->batch) {
      plan.notes.push_back(
          absl::StrCat("there are fewer rows (", plan.train->rows, ") than one step takes (", plan.train->batch, ")"));
    }
  }
  for (const TokenAdditions::Token& token : additions.tokens) {
    plan.notes.push_back(token.known ? absl::StrCat(token.text, " is token ", token.id, " already and stays it")
                                     : absl::StrCat(token.text, " is added as token ", token.id));
  }
  if (additions.any_new()) {
    plan.notes.push_back(
        "embed_tokens and lm_head are trained whole for the added tokens and saved with the adapter, as is the "
        "tokenizer");
  }
  for (int i = 0; i < spec.evaluate_size(); ++i) {
    const v1::EvaluationSpec& evaluation = spec.evaluate(i);
    JobPlan::Evaluation one{.prompts = evaluation.prompts().path(), .n = evaluation.n()};
    one.rows = Weighted(evaluation.prompts().weight(), rows.evaluations[i]);
    one.models =
        (spec.has_student() ? 1 : 0) + (evaluation.compare_base() ? 1 : 0) + (evaluation.compare_teacher() ? 1 : 0);
    one.samples = one.rows * one.n * one.models;
    plan.evaluations.push_back(std::move(one));
  }
  if (teacher != nullptr && spec.has_teacher()) plan.memory.push_back(TeacherMemory(spec.teacher(), *teacher));
  if (student != nullptr && spec.has_student()) {
    int64_t adapter = WholeModules(spec.student(), *student, additions);
    if (spec.student().has_lora()) {
      const auto& targets = spec.student().lora().target_modules();
      const int64_t lora = student->LoraParameters(spec.student().lora().r(), {targets.begin(), targets.end()},
                                                   spec.student().lora().target_modules_pattern());
      adapter += lora;
      if (lora == 0) {
        plan.notes.push_back(
            "student.lora.target_modules names no module of the student that can be adapted: there would be nothing to "
            "train");
      }
    } else {
      plan.notes.push_back("the adapter's size is that of adapter_name_or_path and is not counted");
    }
    plan.memory.push_back(StudentMemory(spec.student(), *student, adapter));
    plan.disk.checkpoint = adapter * 12;
    if (!spec.export_().merged().empty())
      plan.disk.merged = student->parameters * (spec.export_().merged() == "f32" ? 4 : 2);
    plan.disk.gguf =
        static_cast<int64_t>(static_cast<double>(student->parameters) * BytesPerWeight(spec.export_().gguf()));
  }
  return plan;
}

nlohmann::json PlanToJson(const JobPlan& plan) {
  using nlohmann::json;
  json document = {{"name", plan.name}, {"stages", plan.stages}, {"notes", plan.notes}};
  document["generate"] = nullptr;
  if (plan.generate.has_value()) {
    document["generate"] = {{"prompts", plan.generate->prompts},
                            {"n", plan.generate->n},
                            {"samples", plan.generate->samples},
                            {"replicas", {{"min", plan.generate->min_replicas}, {"max", plan.generate->max_replicas}}}};
  }
  document["train"] = nullptr;
  if (plan.train.has_value()) {
    const TrainPlan& train = *plan.train;
    document["train"] = {{"rows", train.rows},
                         {"rows_exact", train.rows_exact},
                         {"validation_rows", train.validation_rows},
                         {"batch", train.batch},
                         {"micro_batches", train.micro_batches},
                         {"workers", {{"min", train.min_workers}, {"max", train.max_workers}}},
                         {"micro_batches_per_worker", train.shares},
                         {"steps", train.steps},
                         {"epochs", train.epochs}};
  }
  document["evaluate"] = json::array();
  for (const JobPlan::Evaluation& one : plan.evaluations) {
    document["evaluate"].push_back(
        {{"prompts", one.prompts}, {"rows", one.rows}, {"n", one.n}, {"models", one.models}, {"samples", one.samples}});
  }
  document["memory_bytes"] = json::object();
  for (const MemoryPlan& memory : plan.memory) {
    document["memory_bytes"][memory.role] = {{"device", memory.gpu ? "cuda" : "cpu"}, {"weights", memory.weights},
                                             {"kv_cache", memory.kv_cache},           {"adapter", memory.adapter},
                                             {"gradients", memory.gradients},         {"optimizer", memory.optimizer},
                                             {"activations", memory.activations},     {"total", memory.total}};
  }
  document["disk_bytes"] = {{"traces_at_most", plan.disk.traces_at_most},
                            {"checkpoint", plan.disk.checkpoint},
                            {"merged", plan.disk.merged},
                            {"gguf", plan.disk.gguf}};
  return document;
}

}  // namespace retort::cli
