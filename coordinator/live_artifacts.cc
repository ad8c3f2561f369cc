#include "coordinator/live_artifacts.h"

#include "coordinator/stages.h"

namespace retort {
namespace {

void AddArtifact(const std::string& artifact_id, LiveArtifacts* live) {
  if (!artifact_id.empty()) live->artifacts.insert(artifact_id);
}

template <typename Sources>
void AddFiles(const Sources& sources, LiveArtifacts* live) {
  for (const v1::DatasetSource& source : sources) {
    if (!source.file().sha256().empty()) live->blobs.insert(source.file().sha256());
  }
}

}  // namespace

LiveArtifacts CollectLiveArtifacts(const State& state) {
  LiveArtifacts live;
  for (const auto& [job_id, job] : state.jobs()) {
    for (const v1::BlobRef& blob : BlobsOf(*job.spec)) live.blobs.insert(blob.sha256());
    AddFiles(job.record.dataset(), &live);
    for (const v1::JobArtifact& artifact : job.record.result().artifacts()) AddArtifact(artifact.artifact_id(), &live);
    AddArtifact(job.record.checkpoint().artifact_id(), &live);
    AddArtifact(job.record.final_checkpoint().artifact_id(), &live);
    for (const auto& [task_id, task] : job.tasks) {
      const v1::TaskResult& result = task.record.result();
      AddFiles(result.dataset(), &live);
      for (const v1::JobArtifact& artifact : result.artifacts()) AddArtifact(artifact.artifact_id(), &live);
      AddArtifact(result.final_checkpoint().artifact_id(), &live);
    }
  }
  return live;
}

}  // namespace retort
