#include <cctype>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/hash.h"
#include "common/status.h"
#include "coordinator/stages.h"

namespace retort {
namespace {

constexpr size_t kMaxNameBytes = 100;
constexpr int kMaxSources = 1000;
constexpr int kMaxReplicas = 4096;

absl::Status Invalid(absl::string_view field, absl::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat("job spec: ", field, ": ", problem));
}

absl::Status CheckName(const std::string& name) {
  if (name.empty() || name.size() > kMaxNameBytes) {
    return Invalid("name", absl::StrCat("must have 1 to ", kMaxNameBytes, " characters"));
  }
  for (const char c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-' && c != '_' && c != '.') {
      return Invalid("name", absl::StrCat("\"", name, "\" may hold only letters, digits, '-', '_' and '.'"));
    }
  }
  if (name.front() == '.' || name.front() == '-') return Invalid("name", "must begin with a letter, a digit or '_'");
  return absl::OkStatus();
}

absl::Status CheckBlob(const std::string& field, const std::string& path, const v1::BlobRef& blob) {
  if (!IsSha256Hex(blob.sha256())) return Invalid(field, absl::StrCat(path, " was not uploaded"));
  if (blob.size_bytes() < 0) return Invalid(field, "negative size");
  return absl::OkStatus();
}

absl::Status CheckSampling(const std::string& field, const v1::Sampling& sampling) {
  if (sampling.n() < 1) return Invalid(field + ".n", "must be at least 1");
  if (!(sampling.temperature() >= 0) || !std::isfinite(sampling.temperature())) {
    return Invalid(field + ".temperature", "must be a number >= 0");
  }
  if (!(sampling.top_p() > 0 && sampling.top_p() <= 1)) return Invalid(field + ".top_p", "must lie in (0, 1]");
  if (sampling.max_tokens() < 1) return Invalid(field + ".max_tokens", "must be at least 1");
  return absl::OkStatus();
}

absl::Status CheckWorkers(const std::string& field, const v1::WorkerCount& workers) {
  if (workers.min() < 1 || workers.max() < workers.min() || workers.max() > kMaxReplicas) {
    return Invalid(field, absl::StrCat("needs 1 <= min <= max <= ", kMaxReplicas, ", got min ", workers.min(), ", max ",
                                       workers.max()));
  }
  return absl::OkStatus();
}

absl::Status CheckTeacher(const v1::TeacherSpec& teacher) {
  if (teacher.model().empty()) return Invalid("teacher.model", "is missing");
  if (teacher.backend() == v1::TEACHER_BACKEND_UNSPECIFIED) return Invalid("teacher.backend", "is missing");
  if (teacher.backend() == v1::TEACHER_BACKEND_OPENAI && teacher.base_url().empty()) {
    return Invalid("teacher.base_url", "is missing (backend openai)");
  }
  RETURN_IF_ERROR(CheckSampling("teacher.sampling", teacher.sampling()));
  return CheckWorkers("teacher.workers", teacher.workers());
}

absl::Status CheckStudent(const v1::StudentSpec& student) {
  if (student.model_name_or_path().empty()) return Invalid("student.model_name_or_path", "is missing");
  if (!student.has_lora() && student.adapter_name_or_path().empty()) {
    return Invalid("student.lora", "is missing, and there is no adapter_name_or_path to start from");
  }
  if (student.training().per_device_train_batch_size() < 1) {
    return Invalid("student.training.per_device_train_batch_size", "must be at least 1");
  }
  if (student.training().gradient_accumulation_steps() < 1) {
    return Invalid("student.training.gradient_accumulation_steps", "must be at least 1");
  }
  RETURN_IF_ERROR(CheckWorkers("student.workers", student.workers()));
  if (student.workers().min() > student.training().gradient_accumulation_steps()) {
    return Invalid("student.workers.min",
                   absl::StrCat("is ", student.workers().min(), ", but a step has only ",
                                student.training().gradient_accumulation_steps(),
                                " micro-batches (student.training.gradient_accumulation_steps) to share"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateSpec(const v1::JobSpec& spec) {
  RETURN_IF_ERROR(CheckName(spec.name()));
  if (spec.prompts_size() > kMaxSources || spec.dataset_size() > kMaxSources || spec.evaluate_size() > kMaxSources) {
    return Invalid("prompts, dataset, evaluate", absl::StrCat("at most ", kMaxSources, " entries each"));
  }
  if (spec.max_infrastructure_failures() < 0) return Invalid("max_infrastructure_failures", "must not be negative");
  if (spec.has_teacher()) RETURN_IF_ERROR(CheckTeacher(spec.teacher()));
  if (spec.has_student()) RETURN_IF_ERROR(CheckStudent(spec.student()));
  if (spec.prompts_size() > 0 && !spec.has_teacher()) return Invalid("teacher", "is missing: who answers the prompts?");
  if (spec.prompts_size() > 0 && spec.dataset_size() > 0) {
    return Invalid("dataset", "a job has either prompts and a teacher, or a dataset");
  }
  if (spec.has_student() && spec.prompts_size() == 0 && spec.dataset_size() == 0) {
    return Invalid("dataset",
                   "is missing: the student has nothing to learn from (give dataset, or prompts and teacher)");
  }
  for (int i = 0; i < spec.prompts_size(); ++i) {
    RETURN_IF_ERROR(CheckBlob(absl::StrCat("prompts[", i, "]"), spec.prompts(i).path(), spec.prompts(i).file()));
  }
  for (int i = 0; i < spec.dataset_size(); ++i) {
    RETURN_IF_ERROR(CheckBlob(absl::StrCat("dataset[", i, "]"), spec.dataset(i).path(), spec.dataset(i).file()));
  }
  for (int i = 0; i < spec.evaluate_size(); ++i) {
    const v1::EvaluationSpec& evaluation = spec.evaluate(i);
    const std::string field = absl::StrCat("evaluate[", i, "]");
    RETURN_IF_ERROR(CheckBlob(field, evaluation.prompts().path(), evaluation.prompts().file()));
    v1::Sampling sampling = evaluation.sampling();
    sampling.set_n(evaluation.n());
    RETURN_IF_ERROR(CheckSampling(field, sampling));
    if (!spec.has_student() && !(spec.has_teacher() && evaluation.compare_teacher())) {
      return Invalid(field, "there is no student and no teacher to evaluate");
    }
  }
  if (StagesOf(spec).empty()) return Invalid("", "asks for nothing: give prompts and teacher, or dataset and student");
  return absl::OkStatus();
}

std::vector<v1::BlobRef> BlobsOf(const v1::JobSpec& spec) {
  std::vector<v1::BlobRef> blobs;
  for (const v1::PromptSource& source : spec.prompts()) blobs.push_back(source.file());
  for (const v1::DatasetSource& source : spec.dataset()) blobs.push_back(source.file());
  for (const v1::EvaluationSpec& evaluation : spec.evaluate()) blobs.push_back(evaluation.prompts().file());
  return blobs;
}

}  // namespace retort
