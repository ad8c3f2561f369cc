// What a group of tasks yielded, taken over into its stage and job.
#pragma once

#include "coordinator/state.h"

namespace retort {

// Merges the results of the stage's running group: outcomes into the stage, artifacts, versions, dataset, checkpoint
// and evaluations into the job.
void CollectResults(JobEntry* job, internal::StageRecord* stage);

// Puts `artifact` in place of one with the same name.
void PutArtifact(v1::JobResult* result, const v1::JobArtifact& artifact);

}  // namespace retort
