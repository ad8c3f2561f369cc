// From a job's spec to its stages, task groups and task inputs: pure functions.
//
// A stage runs its groups one after another. The tasks of a group run together: as a gang (training), as replicas that
// share one piece of work (generation), or each with its own (evaluation: one per model).
//
// Evaluation's group 0 has one generating task per model (base, teacher, student; each answers the prompts of every
// evaluation), its group 1 is the judge. Export runs only for a merged folder: the adapter comes out of training.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "retort/internal/coordinator_state.pb.h"
#include "retort/v1/job.pb.h"
#include "retort/v1/task_service.pb.h"

namespace retort {

// The stages that a spec asks for, in order.
std::vector<v1::Stage> StagesOf(const v1::JobSpec& spec);

enum class GroupKind {
  kGang,      // ranks that need each other: all of `min` or none, up to `max`
  kReplicas,  // the first to complete completes the group: the work is shared
  kSeparate,  // every task has its own work
};

enum class Device { kAuto, kCpu, kCuda };

struct TaskGroup {
  GroupKind kind = GroupKind::kSeparate;
  std::string role;  // "teacher" | "student" | "curate"
  Device device = Device::kCpu;
  std::vector<Device> devices;  // of each task, where they are separate and differ; empty: `device` of all
  int min = 1;                  // tasks that must run
  int max = 1;                  // tasks in all
  int threads = 0;              // CPU threads of one task; 0: its share of the worker's cores
};

// Groups of that stage; at least one.
std::vector<TaskGroup> GroupsOf(const v1::JobSpec& spec, v1::Stage stage);

// "<job_id>.<stage>.<group>.<replica>"
std::string TaskId(const std::string& job_id, v1::Stage stage, int group, int replica);
// The part of a task id that names its job. A job id holds dots when its name does.
std::string JobIdOfTask(const std::string& task_id);

// The sets that a stage's generating tasks fill.
std::vector<std::string> SampleSetIdsOf(const v1::JobSpec& spec, const std::string& job_id, v1::Stage stage);

// What the task has to do, from what the earlier stages yielded. Losses of the checkpoint to resume from are the
// caller's to add. Errors: kInternal (an earlier stage did not yield what this one needs).
absl::StatusOr<v1::GetTaskResponse> BuildTask(const v1::JobSpec& spec, const internal::JobRecord& job,
                                              const internal::TaskRecord& task);

// Names a training run's data: the curated manifest, or a hash over the job's own files.
std::string ManifestSha256(const v1::JobSpec& spec, const internal::JobRecord& job);

// What a spec must fulfil whoever made it. distctl checks more, with lines and columns. Errors: kInvalidArgument naming
// the field.
absl::Status ValidateSpec(const v1::JobSpec& spec);

// Every uploaded file that a spec names.
std::vector<v1::BlobRef> BlobsOf(const v1::JobSpec& spec);

}  // namespace retort
