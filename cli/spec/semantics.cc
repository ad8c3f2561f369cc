#include "cli/spec/semantics.h"

#include <cmath>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "curate/answer.h"
#include "model/training_rows.h"

namespace retort::cli {
namespace {

constexpr size_t kMaxNameBytes = 63;

class Checker {
 public:
  Checker(BoundSpec* bound, Diagnostics* diagnostics)
      : spec_(bound->spec), origins_(bound->origins), diagnostics_(diagnostics) {}

  void Run() {
    CheckName();
    CheckSources();
    if (spec_.has_teacher()) CheckTeacher();
    CheckCurate();
    if (spec_.has_student()) CheckStudent();
    for (int i = 0; i < spec_.evaluate_size(); ++i)
      CheckEvaluation(absl::StrCat("evaluate.", i), spec_.mutable_evaluate(i));
    CheckExport();
  }

 private:
  void Complain(absl::string_view path, absl::string_view message) {
    if (!diagnostics_->Touches(path)) diagnostics_->Add(origins_.Of(path), path, message);
  }
  bool Wrote(absl::string_view path) const { return origins_.Wrote(path); }
  bool Generates() const { return spec_.has_teacher() && Wrote("prompts"); }

  void CheckName() {
    const std::string& name = spec_.name();
    bool good = !name.empty() && name.size() <= kMaxNameBytes && name[0] != '.' && name[0] != '-';
    for (const char c : name) {
      good = good && (std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.');
    }
    if (!good) {
      Complain("name", absl::StrCat("\"", name, "\" is no name: letters, digits, \"-\", \"_\" and \".\", at most ",
                                    kMaxNameBytes, ", beginning with a letter or digit"));
    }
  }

  void CheckSources() {
    const bool prompts = Wrote("prompts");
    const bool teacher = Wrote("teacher");
    const bool dataset = Wrote("dataset");
    if (dataset && prompts) {
      Complain("dataset", "stands beside prompts; a job has either prompts and teacher, or dataset");
    } else if (dataset && teacher) {
      // The one use of a teacher there: to compare with in an evaluation.
      if (!Wrote("evaluate")) Complain("teacher", "it has no prompts to answer; dataset stands in their place");
    } else if (prompts && !teacher) {
      Complain("prompts",
               "there is no teacher to answer them; add teacher, e.g. teacher: {backend: native, model: DIR}");
    } else if (teacher && !prompts) {
      Complain("teacher", "it has no prompts to answer; add prompts, e.g. prompts: [{path: FILE.jsonl}]");
    } else if (!prompts && !dataset) {
      Complain("", "nothing to work on; give prompts and teacher, or dataset");
    }
    if (dataset && !Wrote("student") && !Wrote("prompts")) {
      Complain(
          "dataset",
          "there is no student to train on it; add student, e.g. student: {model_name_or_path: DIR, lora: {r: 16}}");
    }
    for (int i = 0; i < spec_.dataset_size(); ++i) CheckDataset(absl::StrCat("dataset.", i), spec_.mutable_dataset(i));
    bool any_train = spec_.dataset_size() == 0;
    for (v1::DatasetSource& source : *spec_.mutable_dataset()) any_train = any_train || source.split() != "validation";
    if (!any_train) Complain("dataset", "no file has split: train");
  }

  void CheckDataset(const std::string& path, v1::DatasetSource* source) {
    const std::string at = path + ".prompt_template";
    const bool columns = source->format() == v1::DATASET_FORMAT_COLUMNS;
    if (!Wrote(at)) {
      if (Wrote(at + "_fields")) Complain(at + "_fields", "does nothing without prompt_template");
      if (columns) Complain(path + ".format", "columns needs a prompt_template that says what becomes of them");
      return;
    }
    const SftOptions options = SftOptionsOf(spec_.student().training(), *source);
    if (options.prompt_template.empty()) {
      Complain(at, "is empty");
    } else if (const auto slots = PromptTemplateColumns(options); !slots.ok()) {
      Complain(at, absl::StripPrefix(slots.status().message(), "prompt_template: "));
    }
    if (source->format() != v1::DATASET_FORMAT_UNSPECIFIED && !columns) {
      Complain(path + ".format", "stands beside prompt_template, which takes rows of any columns; leave it out");
    }
    source->set_format(v1::DATASET_FORMAT_COLUMNS);
    if (options.assistant_only_loss) {
      Complain("student.training.assistant_only_loss",
               absl::StrCat("needs conversations, and ", at, " makes texts of the rows"));
    }
  }

  void CheckWorkers(const std::string& path, v1::WorkerCount* workers) {
    if (!Wrote(path + ".max")) workers->set_max(std::max(1, workers->min()));
    if (workers->max() < workers->min()) {
      // `min` may be the default.
      Complain(path + ".max", absl::StrCat(workers->max(), " is below ", path, ".min, which is ", workers->min()));
    }
  }

  void OnlyFor(absl::string_view path, absl::string_view backend) {
    if (Wrote(path)) Complain(path, absl::StrCat("is for teacher.backend: ", backend, " only"));
  }

  void CheckTeacher() {
    v1::TeacherSpec* teacher = spec_.mutable_teacher();
    CheckWorkers("teacher.workers", teacher->mutable_workers());
    if (teacher->model().empty()) Complain("teacher.model", "is empty");
    if (teacher->backend() == v1::TEACHER_BACKEND_OPENAI) {
      const std::string& url = teacher->base_url();
      if (!Wrote("teacher.base_url")) {
        Complain("teacher.base_url", "missing; backend openai wants the endpoint, e.g. http://host:8000/v1");
      } else if (!absl::StartsWith(url, "http://") && !absl::StartsWith(url, "https://")) {
        Complain("teacher.base_url", absl::StrCat("\"", url, "\" does not begin with http:// or https://"));
      } else if (url.find("://") + 3 >= url.size() || url.find_first_of(" \t\r\n") != std::string::npos) {
        Complain("teacher.base_url", absl::StrCat("\"", url, "\" names no host; e.g. http://host:8000/v1"));
      }
      if (Wrote("teacher.api_key.env") && teacher->api_key_env().empty()) Complain("teacher.api_key.env", "is empty");
      for (const char* path :
           {"teacher.batch_size", "teacher.dtype", "teacher.device", "teacher.tensor_parallel_size"}) {
        OnlyFor(path, "native");
      }
    } else {
      for (const char* path : {"teacher.base_url", "teacher.api_key", "teacher.max_concurrency", "teacher.max_retries",
                               "teacher.request_timeout_seconds"}) {
        OnlyFor(path, "openai");
      }
      if (absl::EndsWithIgnoreCase(teacher->model(), ".gguf")) {
        Complain("teacher.model", "GGUF files are not supported in this version; give a Hugging Face folder");
      }
    }
  }

  void CheckCurate() {
    if (!Generates()) {
      if (Wrote("curate")) Complain("curate", "only traces are curated; a dataset is taken as it is");
      spec_.clear_curate();
      return;
    }
    v1::SplitSpec* split = spec_.mutable_curate()->mutable_split();
    if (!Wrote("curate.split.train")) split->set_train(1.0 - split->validation());
    if (std::abs(split->train() + split->validation() - 1.0) > 1e-6) {
      Complain("curate.split", absl::StrCat("train ", split->train(), " and validation ", split->validation(), " make ",
                                            split->train() + split->validation(), ", not 1"));
    }
    CheckVerify("curate.verify", spec_.curate().verify());
  }

  void CheckVerify(const std::string& path, const v1::VerifySpec& verify) {
    if (verify.kind() == v1::VERIFIER_KIND_UNSPECIFIED && Wrote(path + ".answer_pattern")) {
      Complain(path + ".answer_pattern", absl::StrCat("does nothing without ", path, ".kind"));
    }
    if (const auto verifier = curate::Verifier::Make(verify); !verifier.ok()) {
      Complain(path + ".answer_pattern", verifier.status().message());
    }
  }

  bool HasValidationData() const {
    if (Generates()) return spec_.curate().split().validation() > 0;
    for (const v1::DatasetSource& source : spec_.dataset()) {
      if (source.split() == "validation") return true;
    }
    return false;
  }

  void CheckLora(const v1::LoraSpec& lora) {
    if (!lora.target_modules_pattern().empty() && lora.layers_to_transform_size() > 0) {
      Complain("student.lora.layers_to_transform",
               "goes with a list of target_modules; with a pattern, the pattern says which layers");
    }
    if (lora.layers_pattern_size() > 0 && lora.layers_to_transform_size() == 0) {
      Complain("student.lora.layers_pattern", "does nothing without layers_to_transform");
    }
    if (lora.target_parameters_size() > 0 && (lora.use_dora() || lora.lora_dropout() > 0)) {
      Complain("student.lora.target_parameters",
               lora.use_dora() ? "cannot be adapted with use_dora" : "cannot be adapted with lora_dropout above 0");
    }
  }

  void CheckAddedTokens(const std::string& path, const google::protobuf::RepeatedPtrField<std::string>& tokens) {
    for (int i = 0; i < tokens.size(); ++i) {
      const std::string& token = tokens[i];
      const std::string at = Wrote(absl::StrCat(path, ".", i)) ? absl::StrCat(path, ".", i) : path;
      if (token.empty()) Complain(at, "an empty text is no token");
      // What other tools split there.
      if (token.size() > 1 && absl::StrContains(token, ',')) {
        Complain(at,
                 absl::StrCat("\"", token, "\" holds a comma; write tokens as a list: [\"<think>\", \"</think>\"]"));
      }
    }
  }

  void CheckQuantisation(const v1::StudentSpec& student) {
    if (student.load_in_4bit() && student.load_in_8bit()) {
      Complain("student.load_in_8bit", "is true beside load_in_4bit; the base is kept in the one or the other");
    }
    for (const char* key : {"student.bnb_4bit_quant_type", "student.bnb_4bit_use_double_quant"}) {
      if (Wrote(key) && !student.load_in_4bit()) Complain(key, "does nothing without load_in_4bit: true");
    }
    if ((student.load_in_4bit() || student.load_in_8bit()) &&
        absl::StartsWith(student.lora().init_lora_weights(), "pissa")) {
      Complain(
          "student.lora.init_lora_weights",
          "pissa takes a part out of the base, which 4 or 8 bits cannot hold; leave load_in_4bit or load_in_8bit out");
    }
  }

  void CheckStudent() {
    v1::StudentSpec* student = spec_.mutable_student();
    v1::TrainingSpec* training = student->mutable_training();
    if (absl::EndsWithIgnoreCase(student->model_name_or_path(), ".gguf")) {
      Complain("student.model_name_or_path",
               "GGUF files are not supported in this version; give a Hugging Face folder");
    }
    if (!student->has_lora() && student->adapter_name_or_path().empty()) {
      Complain("student.lora",
               "missing; a new adapter wants lora, e.g. lora: {r: 16}, or adapter_name_or_path to start from one");
    }
    CheckLora(student->lora());
    CheckAddedTokens("student.add_tokens", student->add_tokens());
    CheckAddedTokens("student.add_special_tokens", student->add_special_tokens());
    CheckQuantisation(*student);
    CheckWorkers("student.workers", student->mutable_workers());
    if (student->workers().min() > training->gradient_accumulation_steps() &&
        !diagnostics_->Touches("student.training.gradient_accumulation_steps")) {
      Complain(
          "student.workers.min",
          absl::StrCat(student->workers().min(), " workers cannot share the ", training->gradient_accumulation_steps(),
                       " micro-batches of a step (student.training.gradient_accumulation_steps)"));
    }
    if (training->max_steps() < 0) training->set_max_steps(0);
    if (!Wrote("student.training.eval_steps")) training->set_eval_steps(training->logging_steps());
    if (Wrote("student.training.eval_steps") && training->eval_strategy() != v1::EVAL_STRATEGY_STEPS) {
      Complain("student.training.eval_steps", "does nothing without eval_strategy: steps");
    }
    const bool evaluates =
        training->eval_strategy() == v1::EVAL_STRATEGY_STEPS || training->eval_strategy() == v1::EVAL_STRATEGY_EPOCH;
    if (evaluates && !HasValidationData()) {
      Complain("student.training.eval_strategy",
               Generates() ? "there is no validation data; give curate.split.validation"
                           : "there is no validation data; give a dataset with split: validation");
    }
    if (training->reduction() == v1::REDUCTION_NCCL && training->deterministic()) {
      Complain("student.training.reduction",
               "nccl gives other bits for another number of workers, and deterministic (by default true) promises the "
               "same; write deterministic: false beside it, or leave reduction out");
    }
    if (training->reduction() != v1::REDUCTION_NCCL && !training->deterministic()) {
      Complain("student.training.deterministic", "false is not supported in this version, only with reduction: nccl");
    }
    if (student->device() == "cpu" && training->reduction() == v1::REDUCTION_NCCL) {
      Complain("student.training.reduction", "nccl needs device: cuda");
    }
  }

  void CheckEvaluation(const std::string& path, v1::EvaluationSpec* evaluation) {
    const bool teacher = spec_.has_teacher();
    const bool student = spec_.has_student();
    if (!teacher && !student) Complain(path, "there is neither a teacher nor a student to evaluate");
    if (!Wrote(path + ".compare_base")) evaluation->set_compare_base(student);
    if (!Wrote(path + ".compare_teacher")) evaluation->set_compare_teacher(teacher);
    if (evaluation->compare_base() && !student)
      Complain(path + ".compare_base", "there is no student whose base it would be");
    if (evaluation->compare_teacher() && !teacher) Complain(path + ".compare_teacher", "there is no teacher");
    if (!student && !evaluation->compare_teacher()) Complain(path, "nothing is left to evaluate");

    const v1::Sampling& from = spec_.teacher().sampling();
    v1::Sampling* sampling = evaluation->mutable_sampling();
    const bool one = evaluation->n() <= 1;
    sampling->set_n(evaluation->n());
    if (!Wrote(path + ".sampling.temperature")) sampling->set_temperature(one ? 0 : teacher ? from.temperature() : 0.6);
    if (!Wrote(path + ".sampling.top_p")) sampling->set_top_p(one ? 1 : teacher ? from.top_p() : 0.95);
    if (!Wrote(path + ".sampling.max_tokens")) sampling->set_max_tokens(teacher ? from.max_tokens() : 32768);
    if (!Wrote(path + ".sampling.seed")) sampling->set_seed(from.seed());

    if (Wrote(path + ".verify")) {
      CheckVerify(path + ".verify", evaluation->verify());
    } else {
      *evaluation->mutable_verify() = spec_.curate().verify();
      if (evaluation->verify().kind() == v1::VERIFIER_KIND_UNSPECIFIED) {
        Complain(path + ".verify", "missing; answers are judged by a verifier, e.g. verify: {kind: number}");
      }
    }
  }

  void CheckExport() {
    if (spec_.has_student()) return;
    if (Wrote("export")) Complain("export", "there is no student to export");
    spec_.clear_export_();
  }

  v1::JobSpec& spec_;
  const Origins& origins_;
  Diagnostics* const diagnostics_;
};

}  // namespace

void CompleteAndCheck(BoundSpec* bound, Diagnostics* diagnostics) { Checker(bound, diagnostics).Run(); }

}  // namespace retort::cli
