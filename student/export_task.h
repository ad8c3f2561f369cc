// The end of a job: the adapter and the merged model as folders that others load.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/rpc/artifact_client.h"
#include "common/rpc/task_client.h"
#include "retort/v1/task_service.pb.h"

namespace retort {

// Runs `context`'s ExportTask. Errors: as PrepareTraining.
absl::StatusOr<v1::TaskResult> RunExportTask(TaskContext& context);

// Puts a folder into the artifact store. Errors: as ArtifactClient::PutFolder.
absl::StatusOr<v1::JobArtifact> UploadFolder(ArtifactClient& artifacts, const std::string& folder,
                                             const std::string& name, v1::Stage stage);

}  // namespace retort
