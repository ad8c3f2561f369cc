#include "coordinator/stages.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/hash.h"
#include "coordinator/transitions.h"

namespace retort {
namespace {

constexpr int kDefaultBatchSize = 32;

Device ParseDevice(const std::string& device) {
  if (device == "cpu") return Device::kCpu;
  if (device == "cuda") return Device::kCuda;
  return Device::kAuto;
}

// An endpoint's client needs no GPU of ours.
Device TeacherDevice(const v1::TeacherSpec& teacher) {
  return teacher.backend() == v1::TEACHER_BACKEND_OPENAI ? Device::kCpu : ParseDevice(teacher.device());
}

enum class EvaluatedModel { kBase, kTeacher, kStudent };

bool Runs(const v1::JobSpec& spec, const v1::EvaluationSpec& evaluation, EvaluatedModel model) {
  switch (model) {
    case EvaluatedModel::kBase:
      return spec.has_student() && evaluation.compare_base();
    case EvaluatedModel::kTeacher:
      return spec.has_teacher() && evaluation.compare_teacher();
    case EvaluatedModel::kStudent:
      return spec.has_student();
  }
  return false;
}

std::vector<EvaluatedModel> ModelsOf(const v1::JobSpec& spec) {
  std::vector<EvaluatedModel> models;
  for (const EvaluatedModel model : {EvaluatedModel::kBase, EvaluatedModel::kTeacher, EvaluatedModel::kStudent}) {
    for (const v1::EvaluationSpec& evaluation : spec.evaluate()) {
      if (Runs(spec, evaluation, model)) {
        models.push_back(model);
        break;
      }
    }
  }
  return models;
}

const char* NameOf(EvaluatedModel model) {
  switch (model) {
    case EvaluatedModel::kBase:
      return "base";
    case EvaluatedModel::kTeacher:
      return "teacher";
    case EvaluatedModel::kStudent:
      return "student";
  }
  return "";
}

std::string AdapterArtifact(const internal::JobRecord& job) {
  for (const v1::JobArtifact& artifact : job.result().artifacts()) {
    if (artifact.name() == "adapter") return artifact.artifact_id();
  }
  return "";
}

std::string TeacherSampleSetId(const std::string& job_id) { return absl::StrCat(job_id, "/teacher"); }

std::string EvaluationSampleSetId(const std::string& job_id, int index, EvaluatedModel model) {
  return absl::StrCat(job_id, "/eval-", index, "-", NameOf(model));
}

v1::SampleSet TeacherSampleSet(const v1::JobSpec& spec, const internal::JobRecord& job) {
  v1::SampleSet set;
  set.set_sample_set_id(TeacherSampleSetId(job.job_id()));
  set.set_now_unix_seconds(job.submitted_at().seconds());
  *set.mutable_prompts() = spec.prompts();
  *set.mutable_generator() = spec.teacher();
  return set;
}

v1::SampleSet EvaluationSampleSet(const v1::JobSpec& spec, const internal::JobRecord& job, int index,
                                  EvaluatedModel model) {
  const v1::EvaluationSpec& evaluation = spec.evaluate(index);
  v1::SampleSet set;
  set.set_sample_set_id(EvaluationSampleSetId(job.job_id(), index, model));
  set.set_now_unix_seconds(job.submitted_at().seconds());
  *set.add_prompts() = evaluation.prompts();
  v1::TeacherSpec& generator = *set.mutable_generator();
  generator = spec.teacher();
  if (model != EvaluatedModel::kTeacher) {
    generator.set_backend(v1::TEACHER_BACKEND_NATIVE);
    generator.set_model(spec.student().model_name_or_path());
    generator.clear_base_url();
    generator.clear_api_key_env();
    generator.clear_dtype();
    generator.set_device(spec.student().device());
    if (generator.batch_size() <= 0) generator.set_batch_size(kDefaultBatchSize);
  }
  *generator.mutable_sampling() = evaluation.sampling();
  generator.mutable_sampling()->set_n(std::max(1, evaluation.n()));
  if (model == EvaluatedModel::kStudent) set.set_adapter_artifact_id(AdapterArtifact(job));
  return set;
}

TaskGroup GenerateGroup(const v1::TeacherSpec& teacher) {
  TaskGroup group;
  group.kind = GroupKind::kReplicas;
  group.role = "teacher";
  group.device = TeacherDevice(teacher);
  group.min = std::max(1, teacher.workers().min());
  group.max = std::max(group.min, teacher.workers().max());
  return group;
}

TaskGroup TrainGroup(const v1::StudentSpec& student) {
  TaskGroup group;
  group.kind = GroupKind::kGang;
  group.role = "student";
  group.device = ParseDevice(student.device());
  const int micro_batches = std::max(1, student.training().gradient_accumulation_steps());
  group.min = std::min(micro_batches, std::max(1, student.workers().min()));
  group.max = std::min(micro_batches, std::max(group.min, student.workers().max()));
  group.threads = std::max(1, student.threads_per_worker());
  return group;
}

}  // namespace

std::vector<v1::Stage> StagesOf(const v1::JobSpec& spec) {
  std::vector<v1::Stage> stages;
  if (spec.has_teacher() && spec.prompts_size() > 0) {
    stages.push_back(v1::STAGE_GENERATE);
    stages.push_back(v1::STAGE_CURATE);
  }
  if (spec.has_student()) stages.push_back(v1::STAGE_TRAIN);
  if (spec.evaluate_size() > 0) stages.push_back(v1::STAGE_EVALUATE);
  const bool exports = !spec.export_().merged().empty() || !spec.export_().gguf().empty();
  if (spec.has_student() && exports) stages.push_back(v1::STAGE_EXPORT);
  return stages;
}

std::vector<TaskGroup> GroupsOf(const v1::JobSpec& spec, v1::Stage stage) {
  TaskGroup single;
  switch (stage) {
    case v1::STAGE_GENERATE:
      return {GenerateGroup(spec.teacher())};
    case v1::STAGE_TRAIN:
      return {TrainGroup(spec.student())};
    case v1::STAGE_EVALUATE: {
      TaskGroup answer;
      answer.role = "teacher";
      for (const EvaluatedModel model : ModelsOf(spec)) {
        answer.devices.push_back(model == EvaluatedModel::kTeacher ? TeacherDevice(spec.teacher())
                                                                   : ParseDevice(spec.student().device()));
      }
      answer.min = answer.max = static_cast<int>(answer.devices.size());
      single.role = "curate";
      return {answer, single};
    }
    case v1::STAGE_EXPORT:
      single.role = "student";
      return {single};
    default:
      single.role = "curate";
      return {single};
  }
}

std::vector<std::string> SampleSetIdsOf(const v1::JobSpec& spec, const std::string& job_id, v1::Stage stage) {
  if (stage == v1::STAGE_GENERATE) return {TeacherSampleSetId(job_id)};
  std::vector<std::string> ids;
  if (stage != v1::STAGE_EVALUATE) return ids;
  for (int i = 0; i < spec.evaluate_size(); ++i) {
    for (const EvaluatedModel model : {EvaluatedModel::kBase, EvaluatedModel::kTeacher, EvaluatedModel::kStudent}) {
      if (Runs(spec, spec.evaluate(i), model)) ids.push_back(EvaluationSampleSetId(job_id, i, model));
    }
  }
  return ids;
}

std::string TaskId(const std::string& job_id, v1::Stage stage, int group, int replica) {
  return absl::StrCat(job_id, ".", ShortName(stage), ".", group, ".", replica);
}

std::string JobIdOfTask(const std::string& task_id) {
  size_t end = task_id.size();
  for (int part = 0; part < 3; ++part) {
    if (end == 0) return "";
    end = task_id.rfind('.', end - 1);
    if (end == std::string::npos) return "";
  }
  return task_id.substr(0, end);
}

std::string ManifestSha256(const v1::JobSpec& spec, const internal::JobRecord& job) {
  if (!job.result().manifest_sha256().empty()) return job.result().manifest_sha256();
  Sha256 hash;
  hash.UpdateField("retort.dataset.v1");
  for (const v1::DatasetSource& source : spec.dataset()) {
    hash.UpdateField(source.file().sha256());
    hash.UpdateU64(static_cast<uint64_t>(source.format()));
    hash.UpdateField(source.split());
    hash.UpdateField(absl::StrCat(source.weight()));
    hash.UpdateU64(static_cast<uint64_t>(source.rows()));
  }
  return ToHex(hash.Finish());
}

absl::StatusOr<v1::GetTaskResponse> BuildTask(const v1::JobSpec& spec, const internal::JobRecord& job,
                                              const internal::TaskRecord& task) {
  v1::GetTaskResponse response;
  response.set_job_id(job.job_id());
  response.set_job_name(spec.name());
  const auto missing = [&](const char* what) {
    return absl::InternalError(absl::StrCat(task.task_id(), ": the stages before it yielded no ", what,
                                            "; resubmit the job and report this as a defect"));
  };
  switch (task.stage()) {
    case v1::STAGE_GENERATE:
      *response.mutable_generate()->add_sample_sets() = TeacherSampleSet(spec, job);
      return response;
    case v1::STAGE_CURATE:
      *response.mutable_curate()->mutable_sample_set() = TeacherSampleSet(spec, job);
      *response.mutable_curate()->mutable_curate() = spec.curate();
      return response;
    case v1::STAGE_TRAIN: {
      v1::TrainTask& train = *response.mutable_train();
      *train.mutable_student() = spec.student();
      *train.mutable_dataset() = spec.dataset_size() > 0 ? spec.dataset() : job.dataset();
      if (train.dataset_size() == 0) return missing("dataset");
      train.set_manifest_sha256(ManifestSha256(spec, job));
      train.set_now_unix_seconds(job.submitted_at().seconds());
      if (job.has_checkpoint()) *train.mutable_resume_from() = job.checkpoint();
      return response;
    }
    case v1::STAGE_EVALUATE: {
      if (spec.has_student() && AdapterArtifact(job).empty()) return missing("adapter");
      if (task.group() == 0) {
        const std::vector<EvaluatedModel> models = ModelsOf(spec);
        if (task.replica() >= static_cast<int>(models.size())) return missing("model of that number");
        const EvaluatedModel model = models[static_cast<size_t>(task.replica())];
        for (int i = 0; i < spec.evaluate_size(); ++i) {
          if (!Runs(spec, spec.evaluate(i), model)) continue;
          *response.mutable_generate()->add_sample_sets() = EvaluationSampleSet(spec, job, i, model);
        }
        return response;
      }
      for (int i = 0; i < spec.evaluate_size(); ++i) {
        v1::JudgeTask::Evaluation& evaluation = *response.mutable_judge()->add_evaluations();
        *evaluation.mutable_spec() = spec.evaluate(i);
        if (Runs(spec, spec.evaluate(i), EvaluatedModel::kBase)) {
          *evaluation.mutable_base() = EvaluationSampleSet(spec, job, i, EvaluatedModel::kBase);
        }
        if (Runs(spec, spec.evaluate(i), EvaluatedModel::kTeacher)) {
          *evaluation.mutable_teacher() = EvaluationSampleSet(spec, job, i, EvaluatedModel::kTeacher);
        }
        if (Runs(spec, spec.evaluate(i), EvaluatedModel::kStudent)) {
          *evaluation.mutable_student() = EvaluationSampleSet(spec, job, i, EvaluatedModel::kStudent);
        }
      }
      return response;
    }
    case v1::STAGE_EXPORT: {
      if (!job.has_final_checkpoint()) return missing("final checkpoint");
      *response.mutable_export_()->mutable_student() = spec.student();
      *response.mutable_export_()->mutable_export_() = spec.export_();
      *response.mutable_export_()->mutable_final_checkpoint() = job.final_checkpoint();
      return response;
    }
    default:
      return missing("known stage");
  }
}

}  // namespace retort
