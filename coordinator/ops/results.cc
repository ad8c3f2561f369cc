#include "coordinator/ops/results.h"

namespace retort {
namespace {

void AddOutcomes(const v1::Outcomes& from, v1::Outcomes* to) {
  for (const auto& [cause, count] : from.counts()) (*to->mutable_counts())[cause] += count;
}

}  // namespace

void PutArtifact(v1::JobResult* result, const v1::JobArtifact& artifact) {
  for (v1::JobArtifact& known : *result->mutable_artifacts()) {
    if (known.name() != artifact.name()) continue;
    known = artifact;
    return;
  }
  *result->add_artifacts() = artifact;
}

void CollectResults(JobEntry* job, internal::StageRecord* stage) {
  const GroupKind kind = GroupsOf(*job->spec, stage->stage())[static_cast<size_t>(stage->group())].kind;
  v1::JobResult& into = *job->record.mutable_result();
  for (const auto& [task_id, task] : job->tasks) {
    if (task.record.stage() != stage->stage() || task.record.group() != stage->group()) continue;
    if (task.record.state() != v1::TASK_STATE_SUCCEEDED) continue;
    const v1::TaskResult& result = task.record.result();
    // In a gang one rank speaks for all.
    if (kind == GroupKind::kGang && !result.has_final_checkpoint()) continue;
    AddOutcomes(result.outcomes(), stage->mutable_outcomes());
    for (v1::JobArtifact artifact : result.artifacts()) {
      artifact.set_stage(stage->stage());
      PutArtifact(&into, artifact);
    }
    for (const auto& [name, version] : result.versions()) (*into.mutable_versions())[name] = version;
    if (result.dataset_size() > 0) *job->record.mutable_dataset() = result.dataset();
    if (!result.manifest_sha256().empty()) into.set_manifest_sha256(result.manifest_sha256());
    if (result.has_final_checkpoint()) *job->record.mutable_final_checkpoint() = result.final_checkpoint();
    if (!result.adapter_sha256().empty()) into.set_adapter_sha256(result.adapter_sha256());
    for (const v1::EvaluationResult& evaluation : result.evaluations()) *into.add_evaluations() = evaluation;
    if (kind == GroupKind::kGang) break;
  }
}

}  // namespace retort
