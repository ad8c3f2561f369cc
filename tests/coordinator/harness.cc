#include "tests/coordinator/harness.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/hash.h"
#include "common/id.h"
#include "coordinator/transitions.h"

namespace retort {
namespace {

constexpr absl::Duration kStep = absl::Milliseconds(100);

v1::BlobRef Blob(const std::string& contents) {
  v1::BlobRef blob;
  blob.set_sha256(Sha256Hex(contents));
  blob.set_size_bytes(static_cast<int64_t>(contents.size()));
  return blob;
}

void SetSampling(v1::Sampling* sampling) {
  sampling->set_n(2);
  sampling->set_temperature(0.6);
  sampling->set_top_p(0.95);
  sampling->set_max_tokens(64);
}

v1::StudentSpec Student(int min_ranks, int max_ranks) {
  v1::StudentSpec student;
  student.set_model_name_or_path("/models/student");
  student.mutable_lora()->set_r(8);
  student.set_device("cpu");
  student.set_threads_per_worker(1);
  student.mutable_training()->set_per_device_train_batch_size(2);
  student.mutable_training()->set_gradient_accumulation_steps(4);
  student.mutable_workers()->set_min(min_ranks);
  student.mutable_workers()->set_max(max_ranks);
  return student;
}

}  // namespace

v1::JobSpec GenerateSpec(int min_replicas, int max_replicas) {
  v1::JobSpec spec;
  spec.set_name("gen");
  spec.set_max_infrastructure_failures(3);
  v1::PromptSource& prompts = *spec.add_prompts();
  prompts.set_path("/data/p.jsonl");
  *prompts.mutable_file() = Blob("prompts");
  spec.mutable_teacher()->set_backend(v1::TEACHER_BACKEND_NATIVE);
  spec.mutable_teacher()->set_model("/models/teacher");
  spec.mutable_teacher()->set_instruction("think");
  spec.mutable_teacher()->set_device("cpu");
  SetSampling(spec.mutable_teacher()->mutable_sampling());
  spec.mutable_teacher()->mutable_workers()->set_min(min_replicas);
  spec.mutable_teacher()->mutable_workers()->set_max(max_replicas);
  return spec;
}

v1::JobSpec TrainSpec(int min_ranks, int max_ranks) {
  v1::JobSpec spec;
  spec.set_name("train");
  spec.set_max_infrastructure_failures(3);
  v1::DatasetSource& source = *spec.add_dataset();
  source.set_path("/data/train.jsonl");
  *source.mutable_file() = Blob("train");
  source.set_split("train");
  source.set_format(v1::DATASET_FORMAT_MESSAGES);
  *spec.mutable_student() = Student(min_ranks, max_ranks);
  return spec;
}

v1::JobSpec FullSpec() {
  v1::JobSpec spec = GenerateSpec(1, 2);
  spec.set_name("full");
  *spec.mutable_student() = Student(2, 2);
  v1::EvaluationSpec& evaluation = *spec.add_evaluate();
  evaluation.mutable_prompts()->set_path("/data/e.jsonl");
  *evaluation.mutable_prompts()->mutable_file() = Blob("evaluation");
  evaluation.set_n(1);
  evaluation.set_compare_base(true);
  evaluation.set_compare_teacher(true);
  SetSampling(evaluation.mutable_sampling());
  spec.mutable_export_()->set_adapter(true);
  spec.mutable_export_()->set_merged("bf16");
  return spec;
}

v1::TaskResult ResultFor(const v1::GetTaskResponse& task) {
  v1::TaskResult result;
  (*result.mutable_versions())["retort"] = "test";
  switch (task.task_case()) {
    case v1::GetTaskResponse::kGenerate:
      (*result.mutable_outcomes()->mutable_counts())["stop"] = 10;
      break;
    case v1::GetTaskResponse::kCurate: {
      (*result.mutable_outcomes()->mutable_counts())["kept"] = 7;
      (*result.mutable_outcomes()->mutable_counts())["wrong_answer"] = 3;
      v1::DatasetSource& source = *result.add_dataset();
      *source.mutable_file() = Blob("curated");
      source.set_split("train");
      result.set_manifest_sha256(Sha256Hex("manifest"));
      break;
    }
    case v1::GetTaskResponse::kTrain: {
      v1::Checkpoint& checkpoint = *result.mutable_final_checkpoint();
      checkpoint.set_step(4);
      checkpoint.set_artifact_id(Sha256Hex("checkpoint-4"));
      for (int step = 1; step <= 4; ++step) {
        v1::LossPoint& point = *checkpoint.add_losses();
        point.set_step(step);
        point.set_loss(1.0 / step);
      }
      result.set_adapter_sha256(Sha256Hex("adapter bytes"));
      v1::JobArtifact& adapter = *result.add_artifacts();
      adapter.set_name("adapter");
      adapter.set_artifact_id(Sha256Hex("adapter"));
      break;
    }
    case v1::GetTaskResponse::kJudge: {
      v1::EvaluationResult& evaluation = *result.add_evaluations();
      evaluation.set_base(0.1);
      evaluation.set_teacher(0.9);
      evaluation.set_student(0.8);
      break;
    }
    case v1::GetTaskResponse::kExport: {
      v1::JobArtifact& merged = *result.add_artifacts();
      merged.set_name("merged");
      merged.set_artifact_id(Sha256Hex("merged"));
      break;
    }
    case v1::GetTaskResponse::TASK_NOT_SET:
      ADD_FAILURE() << "a task without work";
  }
  return result;
}

Harness::Harness(CoordinatorOptions options) : options_(options) {
  std::string name = (std::filesystem::temp_directory_path() / "retort-coordinator-XXXXXX").string();
  RETORT_CHECK(mkdtemp(name.data()) != nullptr);
  folder_ = name;
  Open();
}

Harness::~Harness() {
  core_.reset();
  log_.reset();
  std::filesystem::remove_all(folder_);
}

void Harness::Open() {
  auto log = StateLog::Open(folder_ + "/state");
  RETORT_CHECK(log.ok());
  log_ = std::move(*log);
  CoreHooks hooks;
  hooks.release_holder = [this](const std::string& task_id, uint64_t epoch) {
    released_.emplace_back(task_id, epoch);
    return absl::OkStatus();
  };
  hooks.sample_set_info = [this](const std::string&) -> absl::StatusOr<v1::SampleSetInfo> { return sample_set_; };
  auto core = Core::Create(options_, &clock_, log_.get(), std::move(hooks));
  RETORT_CHECK(core.ok());
  core_ = std::move(*core);
}

void Harness::Restart() {
  core_.reset();
  log_.reset();
  Open();
}

void Harness::StartWorker(const std::string& worker_id, int cpu_slots, int gpus) {
  FakeWorker& worker = workers_[worker_id];
  worker.incarnation = NewRequestId();
  worker.cpu_slots = cpu_slots;
  worker.gpus = gpus;
  worker.silent = false;
  worker.running.clear();
  Register(worker_id);
  Settle();
}

void Harness::Silence(const std::string& worker_id) { workers_.at(worker_id).silent = true; }
void Harness::Unsilence(const std::string& worker_id) { workers_.at(worker_id).silent = false; }

void Harness::Register(const std::string& worker_id) {
  const FakeWorker& worker = workers_.at(worker_id);
  v1::RegisterWorkerRequest request;
  request.set_worker_id(worker_id);
  request.set_incarnation_id(worker.incarnation);
  request.mutable_resources()->set_cpu_slots(worker.cpu_slots);
  request.mutable_resources()->set_cpu_cores(worker.cpu_slots);
  for (int i = 0; i < worker.gpus; ++i) request.mutable_resources()->add_gpus()->set_index(i);
  for (const auto& [key, assignment] : worker.running) *request.add_running()->mutable_ref() = assignment.ref();
  ASSERT_TRUE(core_->RegisterWorker(request).ok());
}

void Harness::StopWorker(const std::string& worker_id) {
  Heartbeat(worker_id, true);
  KillTasksOf(worker_id);
  Silence(worker_id);
  Settle();
}

void Harness::KillTasksOf(const std::string& worker_id) {
  FakeWorker& worker = workers_.at(worker_id);
  v1::ReportTaskExitRequest exit;
  exit.set_worker_id(worker_id);
  exit.set_incarnation_id(worker.incarnation);
  exit.mutable_exit()->set_signal(9);
  exit.mutable_exit()->set_killed_by_worker(true);
  for (const auto& [key, assignment] : std::exchange(worker.running, {})) {
    *exit.mutable_exit()->mutable_ref() = assignment.ref();
    EXPECT_TRUE(core_->ReportTaskExit(exit).ok());
    core_->RunDuties();  // places it again at once, where it can
  }
}

void Harness::Heartbeat(const std::string& worker_id, bool stopping) {
  const FakeWorker& worker = workers_.at(worker_id);
  v1::HeartbeatRequest request;
  request.set_worker_id(worker_id);
  request.set_incarnation_id(worker.incarnation);
  for (const auto& [key, assignment] : worker.running) *request.add_running()->mutable_ref() = assignment.ref();
  request.set_stopping(stopping);
  const absl::Status status = core_->Heartbeat(request);
  if (absl::IsNotFound(status)) {
    Register(worker_id);
  } else {
    ASSERT_TRUE(status.ok()) << status;
  }
}

bool Harness::Sync(const std::string& worker_id) {
  FakeWorker& worker = workers_.at(worker_id);
  v1::WatchAssignmentsRequest request;
  request.set_worker_id(worker_id);
  request.set_incarnation_id(worker.incarnation);
  const auto assignments = core_->WaitAssignments(request, 0, absl::ZeroDuration(), [] { return false; });
  if (!assignments.ok()) return false;
  std::map<PlacementKey, v1::Assignment> wanted;
  for (const v1::Assignment& assignment : assignments->assignments()) {
    wanted[{assignment.ref().task_id(), assignment.ref().epoch()}] = assignment;
  }
  bool changed = false;
  for (auto it = worker.running.begin(); it != worker.running.end();) {
    if (wanted.count(it->first) > 0) {
      ++it;
      continue;
    }
    v1::ReportTaskExitRequest exit;
    exit.set_worker_id(worker_id);
    exit.set_incarnation_id(worker.incarnation);
    *exit.mutable_exit()->mutable_ref() = it->second.ref();
    exit.mutable_exit()->set_signal(9);
    exit.mutable_exit()->set_killed_by_worker(true);
    EXPECT_TRUE(core_->ReportTaskExit(exit).ok());
    it = worker.running.erase(it);
    changed = true;
  }
  for (const auto& [key, assignment] : wanted) changed |= worker.running.emplace(key, assignment).second;
  return changed;
}

void Harness::Settle() {
  for (int round = 0; round < 100; ++round) {
    core_->RunDuties();
    bool changed = false;
    for (const auto& [worker_id, worker] : workers_) {
      if (worker.silent) continue;
      Heartbeat(worker_id);  // registers again where the coordinator does not know the worker
      changed |= Sync(worker_id);
    }
    if (!changed) return;
  }
  ADD_FAILURE() << "the cluster does not settle";
}

void Harness::Advance(absl::Duration by) {
  for (absl::Duration passed; passed < by; passed += kStep) {
    clock_.Advance(std::min(kStep, by - passed));
    for (const auto& [worker_id, worker] : workers_) {
      if (worker.silent) continue;
      Heartbeat(worker_id);
      for (const auto& [key, assignment] : worker.running) {
        if (hanging_.count(key.first) == 0) core_->GetTask(assignment.ref()).IgnoreError();
      }
    }
    Settle();
  }
}

std::string Harness::Submit(const v1::JobSpec& spec, const std::string& request_id) {
  const auto job_id =
      core_->SubmitJob(request_id.empty() ? absl::StrCat("request-", ++next_request_) : request_id, spec);
  EXPECT_TRUE(job_id.ok()) << job_id.status();
  Settle();
  return job_id.ok() ? *job_id : "";
}

v1::Job Harness::Job(const std::string& job_id) {
  auto job = core_->GetJob(job_id);
  EXPECT_TRUE(job.ok()) << job.status();
  return job.ok() ? *job : v1::Job();
}

const v1::StageStatus* Harness::Stage(const v1::Job& job, v1::Stage stage) {
  for (const v1::StageStatus& status : job.stages()) {
    if (status.stage() == stage) return &status;
  }
  return nullptr;
}

Harness::FakeWorker* Harness::Holder(const std::string& task_id, v1::TaskRef* ref, std::string* worker_id) {
  for (auto& [id, worker] : workers_) {
    for (const auto& [key, assignment] : worker.running) {
      if (key.first != task_id) continue;
      *ref = assignment.ref();
      *worker_id = id;
      return &worker;
    }
  }
  return nullptr;
}

void Harness::Exit(const std::string& task_id, int exit_code, int signal, const std::string& message) {
  v1::ReportTaskExitRequest request;
  std::string worker_id;
  FakeWorker* worker = Holder(task_id, request.mutable_exit()->mutable_ref(), &worker_id);
  ASSERT_NE(worker, nullptr) << task_id << " has no process";
  worker->running.erase({task_id, request.exit().ref().epoch()});
  request.set_worker_id(worker_id);
  request.set_incarnation_id(worker->incarnation);
  request.mutable_exit()->set_exit_code(exit_code);
  request.mutable_exit()->set_signal(signal);
  request.mutable_exit()->set_message(message);
  ASSERT_TRUE(core_->ReportTaskExit(request).ok());
  ASSERT_TRUE(core_->ReportTaskExit(request).ok());  // a replay changes nothing
  Settle();
}

std::vector<v1::TaskRef> Harness::Running(const std::string& job_id) {
  std::vector<v1::TaskRef> refs;
  for (const auto& [id, worker] : workers_) {
    for (const auto& [key, assignment] : worker.running) {
      if (assignment.job_id() == job_id) refs.push_back(assignment.ref());
    }
  }
  std::sort(refs.begin(), refs.end(),
            [](const v1::TaskRef& a, const v1::TaskRef& b) { return a.task_id() < b.task_id(); });
  return refs;
}

v1::TaskRef Harness::RunningRef(const std::string& task_id) {
  v1::TaskRef ref;
  std::string worker_id;
  EXPECT_NE(Holder(task_id, &ref, &worker_id), nullptr) << task_id << " has no process";
  return ref;
}

std::string Harness::WorkerOf(const std::string& task_id) {
  v1::TaskRef ref;
  std::string worker_id;
  Holder(task_id, &ref, &worker_id);
  return worker_id;
}

int Harness::GpusOf(const std::string& task_id) {
  v1::TaskRef ref;
  std::string worker_id;
  FakeWorker* worker = Holder(task_id, &ref, &worker_id);
  return worker == nullptr ? 0 : worker->running.at({task_id, ref.epoch()}).gpu_indices_size();
}

void Harness::Complete(const v1::TaskRef& ref) {
  const auto task = core_->GetTask(ref);
  ASSERT_TRUE(task.ok()) << task.status();
  const v1::TaskResult result = ResultFor(*task);
  ASSERT_TRUE(core_->CompleteTask(ref, result).ok());
  ASSERT_TRUE(core_->CompleteTask(ref, result).ok());  // a replay changes nothing
  Exit(ref.task_id(), 0);
}

void Harness::RunToEnd(const std::string& job_id, const std::function<void()>& after_each) {
  for (int round = 0; round < 200; ++round) {
    Settle();
    if (HasEnded(Job(job_id).state())) return;
    const std::vector<v1::TaskRef> running = Running(job_id);
    if (running.empty()) {
      Advance(absl::Seconds(1));
      continue;
    }
    Complete(running.front());
    after_each();
  }
  ADD_FAILURE() << "the job does not end";
}

}  // namespace retort
