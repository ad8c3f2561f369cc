// The parser against whole messages: file, line, column, key, reason.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "cli/spec/job_file.h"
#include "cli/spec/schema.h"

namespace retort::cli {
namespace {

constexpr absl::string_view kWhole = R"(name: whole
output_dir: out/here
prompts:
  - {path: data/math.jsonl, prompt_field: problem, answer_field: answer, weight: 0.5}
teacher:
  backend: native
  model: models/teacher
  sampling: {n: 4, temperature: 0.7, top_p: 0.9, max_tokens: 1024, seed: 7}
  instruction: "Think."
  workers: {min: 1, max: 4}
curate:
  verify: {kind: number}
  finish_reason: [stop]
  dedup: {method: exact}
  split: {train: 0.9, validation: 0.1}
student:
  model_name_or_path: models/student
  lora: {r: 8, lora_alpha: 16, lora_dropout: 0.1, target_modules: [q_proj, v_proj]}
  training:
    per_device_train_batch_size: 2
    gradient_accumulation_steps: 4
    learning_rate: 2e-4
    lr_scheduler_type: cosine
    eval_strategy: steps
    bf16: true
  workers: {min: 2, max: 3}
evaluate:
  - {prompts: data/test.jsonl, prompt_field: problem, n: 8}
export: {adapter: true, merged: bf16}
)";

std::string ErrorsOf(absl::string_view text, const std::vector<std::string>& sets = {}) {
  Diagnostics diagnostics;
  ParseJobSpec(text, "job.yaml", sets, &diagnostics);
  return diagnostics.ToString();
}

v1::JobSpec Parse(absl::string_view text, const std::vector<std::string>& sets = {}) {
  Diagnostics diagnostics;
  v1::JobSpec spec = ParseJobSpec(text, "job.yaml", sets, &diagnostics).spec;
  EXPECT_EQ(diagnostics.ToString(), "");
  return spec;
}

TEST(JobSpecTest, FillsEveryKeyThatIsWritten) {
  const v1::JobSpec spec = Parse(kWhole);
  EXPECT_EQ(spec.name(), "whole");
  EXPECT_EQ(spec.output_dir(), "out/here");
  ASSERT_EQ(spec.prompts_size(), 1);
  EXPECT_EQ(spec.prompts(0).prompt_field(), "problem");
  EXPECT_EQ(spec.prompts(0).weight(), 0.5);
  EXPECT_EQ(spec.teacher().backend(), v1::TEACHER_BACKEND_NATIVE);
  EXPECT_EQ(spec.teacher().sampling().n(), 4);
  EXPECT_EQ(spec.teacher().sampling().seed(), 7u);
  EXPECT_EQ(spec.teacher().workers().max(), 4);
  EXPECT_EQ(spec.curate().verify().kind(), v1::VERIFIER_KIND_NUMBER);
  EXPECT_EQ(spec.curate().dedup(), v1::DEDUP_METHOD_EXACT);
  EXPECT_EQ(spec.curate().split().validation(), 0.1);
  EXPECT_EQ(spec.student().method(), v1::TRAINING_METHOD_SFT);
  EXPECT_THAT(spec.student().lora().target_modules(), testing::ElementsAre("q_proj", "v_proj"));
  EXPECT_EQ(spec.student().training().learning_rate(), 2e-4);
  EXPECT_EQ(spec.student().training().lr_scheduler_type(), v1::LR_SCHEDULER_TYPE_COSINE);
  EXPECT_EQ(spec.student().training().eval_strategy(), v1::EVAL_STRATEGY_STEPS);
  EXPECT_TRUE(spec.student().training().bf16());
  EXPECT_EQ(spec.evaluate(0).prompts().path(), "data/test.jsonl");
  EXPECT_EQ(spec.evaluate(0).prompts().prompt_field(), "problem");
  EXPECT_EQ(spec.evaluate(0).prompts().answer_field(), "answer");
  EXPECT_EQ(spec.export_().merged(), "bf16");
}

TEST(JobSpecTest, FillsDefaultsThatDependOnOtherKeys) {
  const v1::JobSpec spec = Parse(kWhole);
  const v1::EvaluationSpec& evaluation = spec.evaluate(0);
  EXPECT_TRUE(evaluation.compare_base());
  EXPECT_TRUE(evaluation.compare_teacher());
  EXPECT_EQ(evaluation.sampling().n(), 8);
  EXPECT_EQ(evaluation.sampling().temperature(), 0.7);
  EXPECT_EQ(evaluation.sampling().max_tokens(), 1024);
  EXPECT_EQ(evaluation.verify().kind(), v1::VERIFIER_KIND_NUMBER);
  EXPECT_EQ(spec.student().training().eval_steps(), 1);
  EXPECT_EQ(spec.student().training().max_steps(), 0);

  const v1::JobSpec greedy =
      Parse(kWhole, {"evaluate.0.n=1", "student.workers={min: 2}", "curate.split={validation: 0.25}"});
  EXPECT_EQ(greedy.evaluate(0).sampling().temperature(), 0);
  EXPECT_EQ(greedy.evaluate(0).sampling().top_p(), 1);
  EXPECT_EQ(greedy.student().workers().max(), 2);
  EXPECT_EQ(greedy.curate().split().train(), 0.75);
}

TEST(JobSpecTest, DefaultsAreThoseOfTheTable) {
  const v1::JobSpec spec = Parse(R"(name: d
dataset: [{path: train.jsonl}]
student: {model_name_or_path: m, lora: {}}
)");
  EXPECT_FALSE(spec.has_teacher());
  EXPECT_FALSE(spec.has_curate());
  EXPECT_EQ(spec.dataset(0).split(), "train");
  EXPECT_EQ(spec.dataset(0).weight(), 1.0);
  EXPECT_EQ(spec.max_infrastructure_failures(), 10);
  EXPECT_EQ(spec.student().lora().r(), 16);
  EXPECT_THAT(spec.student().lora().target_modules(), testing::ElementsAre("all-linear"));
  EXPECT_FALSE(spec.student().load_in_4bit() || spec.student().load_in_8bit());
  EXPECT_EQ(spec.student().bnb_4bit_quant_type(), "nf4");
  EXPECT_TRUE(spec.student().bnb_4bit_use_double_quant());
  const v1::TrainingSpec& training = spec.student().training();
  EXPECT_TRUE(training.shuffle());
  EXPECT_TRUE(training.deterministic());
  EXPECT_FALSE(training.has_bf16());
  EXPECT_EQ(training.max_length(), 0);
  EXPECT_EQ(training.max_grad_norm(), 1.0);
  EXPECT_EQ(training.reduction(), v1::REDUCTION_TREE);
  EXPECT_EQ(spec.student().workers().min(), 1);
  EXPECT_EQ(spec.student().workers().max(), 1);
  EXPECT_TRUE(spec.export_().adapter());
  EXPECT_EQ(spec.export_().merged(), "");
}

TEST(JobSpecTest, AdaptersAsInPeftsLoraConfig) {
  const auto lora = [](const std::string& text) {
    return Parse("name: d\ndataset: [{path: t.jsonl}]\nstudent: {model_name_or_path: m, lora: {" + text + "}}\n")
        .student()
        .lora();
  };
  const v1::LoraSpec all = lora(
      R"(use_rslora: true, use_dora: true, bias: lora_only, rank_pattern: {"z.*": 4, down_proj: 2}, )"
      R"(alpha_pattern: {o_proj: 2.5}, layers_to_transform: [1, 3], layers_pattern: layers, exclude_modules: [o_proj], )"
      R"(modules_to_save: [lm_head, embed_tokens], init_lora_weights: gaussian, ensure_weight_tying: true)");
  EXPECT_TRUE(all.use_rslora() && all.use_dora() && all.ensure_weight_tying());
  EXPECT_EQ(all.bias(), "lora_only");
  ASSERT_EQ(all.rank_pattern_size(), 2);
  EXPECT_EQ(all.rank_pattern(0).pattern(), "z.*") << "in the order written";
  EXPECT_EQ(all.rank_pattern(0).value(), 4);
  EXPECT_EQ(all.alpha_pattern(0).value(), 2.5);
  EXPECT_THAT(all.layers_to_transform(), testing::ElementsAre(1, 3));
  EXPECT_THAT(all.exclude_modules(), testing::ElementsAre("o_proj"));
  EXPECT_THAT(all.modules_to_save(), testing::ElementsAre("lm_head", "embed_tokens"));
  EXPECT_EQ(all.init_lora_weights(), "gaussian");
  const v1::LoraSpec pattern = lora(R"(target_modules: ".*[qv]_proj", layers_to_transform: null)");
  EXPECT_EQ(pattern.target_modules_pattern(), ".*[qv]_proj");
  EXPECT_EQ(pattern.target_modules_size(), 0);
  EXPECT_THAT(lora("target_modules: q_proj, layers_to_transform: 2").layers_to_transform(), testing::ElementsAre(2));
  EXPECT_EQ(lora("init_lora_weights: false").init_lora_weights(), "false");
  EXPECT_EQ(lora("init_lora_weights: pissa_niter_16").init_lora_weights(), "pissa_niter_16");
  EXPECT_EQ(lora("").init_lora_weights(), "true");
  EXPECT_EQ(lora("").bias(), "");
}

TEST(JobSpecTest, WithoutStudentNothingIsExported) {
  const v1::JobSpec spec = Parse("name: t\nprompts: [{path: p.jsonl}]\nteacher: {model: m}\n");
  EXPECT_FALSE(spec.has_student());
  EXPECT_FALSE(spec.has_export_());
  EXPECT_EQ(spec.curate().dedup(), v1::DEDUP_METHOD_EXACT);
  EXPECT_EQ(spec.curate().split().train(), 1.0);
  EXPECT_THAT(spec.curate().finish_reason(), testing::ElementsAre("stop"));
  EXPECT_EQ(spec.teacher().sampling().temperature(), 0.6);
}

TEST(JobSpecTest, NullIsTheSameAsLeavingOut) {
  const v1::JobSpec spec = Parse(kWhole, {"evaluate=null", "student.training.bf16=~", "teacher.instruction="});
  EXPECT_EQ(spec.evaluate_size(), 0);
  EXPECT_FALSE(spec.student().training().has_bf16());
  EXPECT_EQ(spec.teacher().instruction(), "");
}

TEST(JobSpecTest, EndpointTeacher) {
  const v1::JobSpec spec = Parse(R"(name: e
prompts: [{path: p.jsonl}]
teacher: {backend: openai, model: deepseek-r1, base_url: "http://127.0.0.1:8000/v1", api_key: {env: KEY}, max_concurrency: 8}
)");
  EXPECT_EQ(spec.teacher().backend(), v1::TEACHER_BACKEND_OPENAI);
  EXPECT_EQ(spec.teacher().api_key_env(), "KEY");
  EXPECT_EQ(spec.teacher().max_concurrency(), 8);
  EXPECT_EQ(spec.teacher().request_timeout_seconds(), 600);
}

struct BadCase {
  const char* name;
  std::string text;
  std::string errors;

  friend void PrintTo(const BadCase& bad, std::ostream* os) { *os << bad.name; }
};

std::string DatasetJob(absl::string_view student_keys) {
  return absl::StrCat("name: d\ndataset: [{path: t.jsonl}]\nstudent:\n  model_name_or_path: m\n", student_keys);
}
std::string TeacherJob(absl::string_view teacher_keys, absl::string_view rest = "") {
  return absl::StrCat("name: t\nprompts: [{path: p.jsonl}]\nteacher:\n  model: m\n", teacher_keys, rest);
}

const BadCase kBad[] = {
    {"Empty", "", "job.yaml:1:1: got nothing, wants a map of keys such as name, teacher, student\n"},
    {"List", "- a\n", "job.yaml:1:1: got a list, wants a map of keys such as name, teacher, student\n"},
    {"Syntax", "name: a\n  b: [1\n", "job.yaml:2:4: not valid YAML: illegal map value\n"},
    {"Unclosed", "name: [a\n", "job.yaml:2:1: not valid YAML: end of sequence flow not found\n"},
    {"SecondDocument", "name: a\n---\nname: b\n",
     "job.yaml:3:1: holds a second YAML document; a job file is one document\n"},
    {"UnknownKeySynonym", DatasetJob("  lora: {rank: 8}\n"),
     "job.yaml:5:10: student.lora.rank: unknown key; did you mean \"r\"?\n"},
    {"UnknownKeyLr", DatasetJob("  lora: {}\n  training:\n    lr: 1\n"),
     "job.yaml:7:5: student.training.lr: unknown key; did you mean \"learning_rate\"?\n"},
    {"UnknownKeyEpochs", DatasetJob("  lora: {}\n  training: {epochs: 1}\n"),
     "job.yaml:6:14: student.training.epochs: unknown key; did you mean \"num_train_epochs\"?\n"},
    {"UnknownKeySpelling", DatasetJob("  lora: {}\n  training: {learning_rat: 1}\n"),
     "job.yaml:6:14: student.training.learning_rat: unknown key; did you mean \"learning_rate\"?\n"},
    {"UnknownKeyElsewhere", DatasetJob("  lora: {}\n  learning_rate: 1\n"),
     "job.yaml:6:3: student.learning_rate: unknown key; did you mean \"student.training.learning_rate\"?\n"},
    {"UnknownKeyNothingNear", DatasetJob("  lora: {zzzzzz: 1}\n"),
     "job.yaml:5:10: student.lora.zzzzzz: unknown key; valid keys here: r, lora_alpha, lora_dropout, target_modules, "
     "exclude_modules, use_rslora, use_dora, bias, rank_pattern, alpha_pattern, layers_to_transform, layers_pattern, "
     "modules_to_save, init_lora_weights, ensure_weight_tying, target_parameters, fan_in_fan_out, lora_bias, "
     "use_qalora\n"},
    {"LoraRankPattern", DatasetJob("  lora: {rank_pattern: {q_proj: 0}}\n"),
     "job.yaml:5:33: student.lora.rank_pattern.q_proj: got the number 0, wants a map of patterns to whole numbers in "
     "[1, 65536]\n"},
    {"LoraInit", DatasetJob("  lora: {init_lora_weights: olora}\n"),
     "job.yaml:5:29: student.lora.init_lora_weights: \"olora\" is not supported in this version; supported: true, "
     "false, gaussian, pissa, pissa_niter_*\n"},
    {"LoraLayersWithAPattern", DatasetJob("  lora: {target_modules: \".*q_proj\", layers_to_transform: [0]}\n"),
     "job.yaml:5:38: student.lora.layers_to_transform: goes with a list of target_modules; with a pattern, the pattern "
     "says which layers\n"},
    {"WrongTypeReal", DatasetJob("  lora: {}\n  training: {learning_rate: fast}\n"),
     "job.yaml:6:29: student.training.learning_rate: got the string \"fast\", wants a number >= 0\n"},
    {"WrongTypeQuotedNumber", DatasetJob("  lora: {r: \"8\"}\n"),
     "job.yaml:5:13: student.lora.r: got the string \"8\", wants a whole number in [1, 65536]\n"},
    {"WrongTypeFraction", DatasetJob("  lora: {r: 8.5}\n"),
     "job.yaml:5:13: student.lora.r: got the number 8.5, wants a whole number in [1, 65536]\n"},
    {"WrongTypeBool", DatasetJob("  lora: {}\n  training: {shuffle: yes}\n"),
     "job.yaml:6:23: student.training.shuffle: got the string \"yes\", wants true or false\n"},
    {"WrongTypeMap", DatasetJob("  lora: 16\n"),
     "job.yaml:5:9: student.lora: got a single value, wants a map with r, lora_alpha, lora_dropout, target_modules, "
     "exclude_modules, use_rslora, use_dora, bias, rank_pattern, alpha_pattern, layers_to_transform, layers_pattern, "
     "modules_to_save, init_lora_weights, ensure_weight_tying, target_parameters, fan_in_fan_out, lora_bias, "
     "use_qalora\n"},
    {"QuantisedTwice", DatasetJob("  lora: {}\n  load_in_4bit: true\n  load_in_8bit: true\n"),
     "job.yaml:7:17: student.load_in_8bit: is true beside load_in_4bit; the base is kept in the one or the other\n"},
    {"QuantTypeForNothing", DatasetJob("  lora: {}\n  bnb_4bit_quant_type: fp4\n"),
     "job.yaml:6:24: student.bnb_4bit_quant_type: does nothing without load_in_4bit: true\n"},
    {"PissaOnAQuantisedBase", DatasetJob("  load_in_8bit: true\n  lora: {init_lora_weights: pissa}\n"),
     "job.yaml:6:29: student.lora.init_lora_weights: pissa takes a part out of the base, which 4 or 8 bits cannot "
     "hold; "
     "leave load_in_4bit or load_in_8bit out\n"},
    {"WrongTypeList", "name: d\ndataset: t.jsonl\nstudent: {model_name_or_path: m, lora: {}}\n",
     "job.yaml:2:10: dataset: got the string \"t.jsonl\", wants a list of maps\n"},
    {"WrongTypeElement", "name: d\ndataset: [t.jsonl]\nstudent: {model_name_or_path: m, lora: {}}\n",
     "job.yaml:2:11: dataset.0: got the string \"t.jsonl\", wants a map\n"},
    {"WrongTypeString", "name: 12\ndataset: [{path: t.jsonl}]\nstudent: {model_name_or_path: m, lora: {}}\n",
     "job.yaml:1:7: name: got the number 12, wants a string (put it in quotes)\n"},
    {"WrongTypeStringList", DatasetJob("  lora: {target_modules: [q_proj, 1]}\n"),
     "job.yaml:5:35: student.lora.target_modules.1: got the number 1, wants a string\n"},
    {"ListForScalar", DatasetJob("  lora: {r: [8]}\n"),
     "job.yaml:5:13: student.lora.r: got a list, wants a whole number in [1, 65536]\n"},
    {"EmptyList", "name: d\ndataset: []\nstudent: {model_name_or_path: m, lora: {}}\n",
     "job.yaml:2:10: dataset: the list is empty\n"},
    {"RangeReal", DatasetJob("  lora: {lora_dropout: 1}\n"),
     "job.yaml:5:24: student.lora.lora_dropout: 1 is out of range, wants a number in [0, 1)\n"},
    {"RangeInt", DatasetJob("  lora: {r: 0}\n"),
     "job.yaml:5:13: student.lora.r: 0 is out of range, wants a whole number in [1, 65536]\n"},
    {"RangeOpen", DatasetJob("  lora: {lora_alpha: 0}\n"),
     "job.yaml:5:22: student.lora.lora_alpha: 0 is out of range, wants a number > 0\n"},
    {"RangeHuge", DatasetJob("  lora: {}\n  training: {seed: 99999999999999999999}\n"),
     "job.yaml:6:20: student.training.seed: 99999999999999999999 is out of range, wants a whole number >= 0\n"},
    {"NotFinite", DatasetJob("  lora: {}\n  training: {learning_rate: .inf}\n"),
     "job.yaml:6:29: student.training.learning_rate: got the string \".inf\", wants a number >= 0\n"},
    {"Overflow", DatasetJob("  lora: {}\n  training: {weight_decay: 1e999}\n"),
     "job.yaml:6:28: student.training.weight_decay: 1e999 is out of range, wants a number >= 0\n"},
    {"Choice", DatasetJob("  lora: {}\n  training: {lr_scheduler_type: cosin}\n"),
     "job.yaml:6:33: student.training.lr_scheduler_type: got the string \"cosin\", wants one of linear, cosine, "
     "constant, "
     "constant_with_warmup; did you mean \"cosine\"?\n"},
    {"ChoiceNotSupported", TeacherJob("  backend: vllm\n"),
     "job.yaml:5:12: teacher.backend: \"vllm\" is not supported in this version; supported: native, openai\n"},
    {"KeyNotSupported", DatasetJob("  lora: {}\nqueue: batch\n"),
     "job.yaml:6:1: queue: not supported in this version\n"},
    {"GgufType", DatasetJob("  lora: {}\nexport: {gguf: q8}\n"),
     "job.yaml:6:16: export.gguf: got the string \"q8\", wants one of none, f32, f16, bf16, q8_0, q4_k_m; did you mean "
     "\"q8_0\"?\n"},
    {"ValueNotSupported", TeacherJob("  tensor_parallel_size: 8\n"),
     "job.yaml:5:25: teacher.tensor_parallel_size: 8 is not supported in this version, only 1 is\n"},
    {"MissingName", "dataset: [{path: t.jsonl}]\nstudent: {model_name_or_path: m, lora: {}}\n",
     "job.yaml:1:1: name: missing; wants a string\n"},
    {"MissingPath", "name: d\ndataset: [{split: train}]\nstudent: {model_name_or_path: m, lora: {}}\n",
     "job.yaml:2:11: dataset.0.path: missing; wants a path\n"},
    {"MissingModel", "name: d\ndataset: [{path: t.jsonl}]\nstudent:\n  lora: {}\n",
     "job.yaml:3:1: student.model_name_or_path: missing; wants a path\n"},
    {"MissingNull", "name: d\ndataset: [{path: t.jsonl}]\nstudent:\n  model_name_or_path:\n  lora: {}\n",
     "job.yaml:4:3: student.model_name_or_path: missing; wants a path\n"},
    {"Duplicate", DatasetJob("  lora: {r: 8, r: 16}\n"),
     "job.yaml:5:16: student.lora.r: the key is given twice (first on line 5)\n"},
    {"BadName", "name: a/b\ndataset: [{path: t.jsonl}]\nstudent: {model_name_or_path: m, lora: {}}\n",
     "job.yaml:1:7: name: \"a/b\" is no name: letters, digits, \"-\", \"_\" and \".\", at most 63, beginning with a "
     "letter or digit\n"},
    {"SecretIsNotRepeated", TeacherJob("  backend: openai\n  base_url: http://h/v1\n  api_key: sk-secret\n"),
     "job.yaml:7:12: teacher.api_key: got a single value, wants a map with env\n"},
    // How keys go together.
    {"Nothing", "name: a\n", "job.yaml:1:1: nothing to work on; give prompts and teacher, or dataset\n"},
    {"DatasetAndTeacher", TeacherJob("", "dataset: [{path: t.jsonl}]\nstudent: {model_name_or_path: m, lora: {}}\n"),
     "job.yaml:5:1: dataset: stands beside prompts; a job has either prompts and teacher, or dataset\n"},
    {"PromptsAlone", "name: a\nprompts: [{path: p.jsonl}]\n",
     "job.yaml:2:1: prompts: there is no teacher to answer them; add teacher, e.g. teacher: {backend: native, model: "
     "DIR}\n"},
    {"TeacherAlone", "name: a\nteacher: {model: m}\n",
     "job.yaml:2:1: teacher: it has no prompts to answer; add prompts, e.g. prompts: [{path: FILE.jsonl}]\n"},
    {"DatasetAlone", "name: a\ndataset: [{path: t.jsonl}]\n",
     "job.yaml:2:1: dataset: there is no student to train on it; add student, e.g. student: {model_name_or_path: DIR, "
     "lora: {r: "
     "16}}\n"},
    {"NoLora", DatasetJob(""),
     "job.yaml:3:1: student.lora: missing; a new adapter wants lora, e.g. lora: {r: 16}, or adapter_name_or_path to "
     "start from one\n"},
    {"MinAboveMax", DatasetJob("  lora: {}\n  workers: {min: 3, max: 2}\n"),
     "job.yaml:6:26: student.workers.max: 2 is below student.workers.min, which is 3\n"},
    {"MinAboveMicroBatches",
     DatasetJob("  lora: {}\n  training: {gradient_accumulation_steps: 2}\n  workers: {min: 3}\n"),
     "job.yaml:7:18: student.workers.min: 3 workers cannot share the 2 micro-batches of a step "
     "(student.training.gradient_accumulation_steps)\n"},
    {"SplitSum", TeacherJob("", "curate: {split: {train: 0.9, validation: 0.2}}\n"),
     "job.yaml:5:10: curate.split: train 0.9 and validation 0.2 make 1.1, not 1\n"},
    {"NoValidationData", DatasetJob("  lora: {}\n  training: {eval_strategy: epoch}\n"),
     "job.yaml:6:29: student.training.eval_strategy: there is no validation data; give a dataset with split: "
     "validation\n"},
    {"EvalStepsAlone", DatasetJob("  lora: {}\n  training: {eval_steps: 5}\n"),
     "job.yaml:6:26: student.training.eval_steps: does nothing without eval_strategy: steps\n"},
    {"NcclIsNotDeterministic", DatasetJob("  lora: {}\n  training: {reduction: nccl}\n"),
     "job.yaml:6:25: student.training.reduction: nccl gives other bits for another number of workers, and "
     "deterministic (by default true) promises the same; write deterministic: false beside it, or leave reduction "
     "out\n"},
    {"NotDeterministicAlone", DatasetJob("  lora: {}\n  training: {deterministic: false}\n"),
     "job.yaml:6:29: student.training.deterministic: false is not supported in this version, only with reduction: "
     "nccl\n"},
    {"CurateWithDataset", DatasetJob("  lora: {}\ncurate: {verify: {kind: number}}\n"),
     "job.yaml:6:1: curate: only traces are curated; a dataset is taken as it is\n"},
    {"EvaluateWithoutVerifier", DatasetJob("  lora: {}\nevaluate: [{prompts: p.jsonl}]\n"),
     "job.yaml:6:12: evaluate.0.verify: missing; answers are judged by a verifier, e.g. verify: {kind: number}\n"},
    {"EvaluateTeacherWithout",
     DatasetJob("  lora: {}\nevaluate: [{prompts: p.jsonl, compare_teacher: true, verify: {kind: exact}}]\n"),
     "job.yaml:6:48: evaluate.0.compare_teacher: there is no teacher\n"},
    {"ExportWithoutStudent", TeacherJob("", "export: {adapter: true}\n"),
     "job.yaml:5:1: export: there is no student to export\n"},
    {"BaseUrlMissing", TeacherJob("  backend: openai\n"),
     "job.yaml:3:1: teacher.base_url: missing; backend openai wants the endpoint, e.g. http://host:8000/v1\n"},
    {"BaseUrlScheme", TeacherJob("  backend: openai\n  base_url: host:8000\n"),
     "job.yaml:6:13: teacher.base_url: \"host:8000\" does not begin with http:// or https://\n"},
    {"BaseUrlForNative", TeacherJob("  base_url: http://h/v1\n"),
     "job.yaml:5:13: teacher.base_url: is for teacher.backend: openai only\n"},
    {"Gguf", "name: t\nprompts: [{path: p.jsonl}]\nteacher: {model: m.gguf}\n",
     "job.yaml:3:18: teacher.model: GGUF files are not supported in this version; give a Hugging Face folder\n"},
    {"BadPattern", TeacherJob("", "curate: {verify: {kind: number, answer_pattern: \"(\"}}\n"),
     "job.yaml:5:49: curate.verify.answer_pattern: verify.answer_pattern \"(\": is not an RE2 regular expression: "
     "missing ): (\n"},
    {"PatternWithoutKind", TeacherJob("", "curate: {verify: {answer_pattern: x}}\n"),
     "job.yaml:5:35: curate.verify.answer_pattern: does nothing without curate.verify.kind\n"},
};

class BadJobFileTest : public testing::TestWithParam<BadCase> {};

TEST_P(BadJobFileTest, SaysWhatAndWhere) { EXPECT_EQ(ErrorsOf(GetParam().text), GetParam().errors); }

INSTANTIATE_TEST_SUITE_P(All, BadJobFileTest, testing::ValuesIn(kBad),
                         [](const auto& info) { return info.param.name; });

TEST(JobSpecTest, TellsAllErrorsInTheOrderOfTheFile) {
  EXPECT_EQ(ErrorsOf(R"(name: d
datasets: [{path: t.jsonl}]
student:
  training: {lr: 1, warmup_ratio: 2}
  lora: {r: x}
)",
                     {"student.lora.rank=3", "student.model_name_or_path=m"}),
            "job.yaml:2:1: datasets: unknown key; did you mean \"dataset\"?\n"
            "job.yaml:4:14: student.training.lr: unknown key; did you mean \"learning_rate\"?\n"
            "job.yaml:4:35: student.training.warmup_ratio: 2 is out of range, wants a number in [0, 1]\n"
            "job.yaml:5:13: student.lora.r: got the string \"x\", wants a whole number in [1, 65536]\n"
            "--set student.lora.rank=3: student.lora.rank: unknown key; did you mean \"r\"?\n");
}

TEST(OverrideTest, ReplacesAndMakes) {
  const v1::JobSpec spec =
      Parse(DatasetJob("  lora: {r: 8}\n"),
            {"student.lora.r=4", "student.workers.min=2", "dataset.0.path=other.jsonl",
             "dataset.1={path: v.jsonl, split: validation}", "student.lora.target_modules=[q_proj, k_proj]",
             "student.training.learning_rate=1e-3"});
  EXPECT_EQ(spec.student().lora().r(), 4);
  EXPECT_EQ(spec.student().workers().min(), 2);
  EXPECT_EQ(spec.dataset(0).path(), "other.jsonl");
  EXPECT_EQ(spec.dataset(1).split(), "validation");
  EXPECT_THAT(spec.student().lora().target_modules(), testing::ElementsAre("q_proj", "k_proj"));
  EXPECT_EQ(spec.student().training().learning_rate(), 1e-3);
}

TEST(OverrideTest, ErrorsNameTheArgument) {
  const std::string job = DatasetJob("  lora: {}\n");
  EXPECT_EQ(ErrorsOf(job, {"student.lora.r"}),
            "--set student.lora.r: wants path.to.key=value, e.g. --set student.training.max_steps=100\n");
  EXPECT_EQ(ErrorsOf(job, {"student.lora.r=many"}),
            "--set student.lora.r=many: student.lora.r: got the string \"many\", wants a whole number in [1, 65536]\n");
  EXPECT_EQ(ErrorsOf(job, {"dataset.5.path=x"}),
            "--set dataset.5.path=x: dataset.5.path: there is no dataset.5; the list ends at dataset.0\n");
  EXPECT_EQ(ErrorsOf(job, {"dataset.path=x"}),
            "--set dataset.path=x: dataset.path: dataset is a list; \"path\" must be an index, e.g. dataset.0\n");
  EXPECT_EQ(ErrorsOf(job, {"name.x=1"}), "--set name.x=1: name.x: name is the string \"d\", it has no \"x\"\n");
  EXPECT_EQ(ErrorsOf(job, {"student..r=1"}), "--set student..r=1: student..r: the path has an empty part\n");
  EXPECT_EQ(ErrorsOf(job, {"student.lora.r=[1"}),
            "--set student.lora.r=[1: not valid YAML: end of sequence flow not found\n");
}

TEST(SuggestKeyTest, EveryKeyIsFoundFromOneTypingError) {
  for (const auto& group : JobSpecRoot().children) {
    for (const auto& child : group->children) {
      if (child->name.size() < 6 || child->key->presence == Presence::kNotSupported) continue;
      std::string typo = child->name;
      typo.erase(2, 1);
      EXPECT_EQ(SuggestKey(typo, *group), absl::StrCat("did you mean \"", child->name, "\"?")) << child->key->path;
    }
  }
}

TEST(ParseSpecYamlTest, AliasesCannotGrowWithoutBound) {
  std::string text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n";
  for (char c = 'b'; c < 'j'; ++c) {
    const char p = static_cast<char>(c - 1);
    absl::StrAppend(&text, std::string(1, c), ": &", std::string(1, c), " [");
    for (int i = 0; i < 10; ++i) absl::StrAppend(&text, i == 0 ? "*" : ", *", std::string(1, p));
    absl::StrAppend(&text, "]\n");
  }
  EXPECT_THAT(ErrorsOf(text), testing::HasSubstr("holds over 200000 values; is an alias repeated?"));
}

}  // namespace
}  // namespace retort::cli
