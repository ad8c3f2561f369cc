#include "student/export_task.h"

#include <spdlog/spdlog.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/status.h"
#include "common/version.h"
#include "model/config.h"
#include "model/lora.h"
#include "model/lora_weights.h"
#include "model/tokenizer_folder.h"
#include "model/weights.h"
#include "student/checkpoint.h"
#include "student/setup.h"

namespace retort {
namespace {

absl::StatusOr<c10::ScalarType> ParseDtype(const std::string& name) {
  if (name == "bf16") return c10::ScalarType::BFloat16;
  if (name == "f32") return c10::ScalarType::Float;
  return absl::InvalidArgumentError(absl::StrCat("export.merged: \"", name, "\" is neither \"bf16\" nor \"f32\""));
}

}  // namespace

absl::StatusOr<v1::JobArtifact> UploadFolder(ArtifactClient& artifacts, const std::string& folder,
                                             const std::string& name, v1::Stage stage) {
  v1::JobArtifact artifact;
  artifact.set_name(name);
  artifact.set_stage(stage);
  int64_t size_bytes = 0;
  std::error_code error;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder, error)) {
    if (entry.is_regular_file(error)) size_bytes += static_cast<int64_t>(entry.file_size(error));
  }
  artifact.set_size_bytes(size_bytes);
  ASSIGN_OR_RETURN(*artifact.mutable_artifact_id(), artifacts.PutFolder(folder));
  return artifact;
}

absl::StatusOr<v1::TaskResult> RunExportTask(TaskContext& context) {
  const v1::ExportTask& task = context.task().export_();
  const std::string& work_dir = context.flags().work_dir;
  ArtifactClient artifacts(context.channel());
  const auto tell = [&](int64_t done, const std::string& message) {
    v1::Progress progress;
    progress.set_done(done);
    progress.set_total((task.export_().adapter() ? 1 : 0) + (task.export_().merged().empty() ? 0 : 1));
    progress.set_unit("folders");
    progress.set_message(message);
    context.ReportProgress(progress);
  };
  tell(0, "fetching the final checkpoint");
  ASSIGN_OR_RETURN(const std::string checkpoint, FetchCheckpoint(artifacts, task.final_checkpoint(), work_dir));
  RETURN_IF_ERROR(LoadCheckpoint(checkpoint).status());
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(task.student().model_name_or_path()));
  ASSIGN_OR_RETURN(const LoraAdapter adapter, LoadAdapter(checkpoint, config));

  v1::TaskResult result;
  if (task.export_().adapter()) {
    const std::string folder = absl::StrCat(work_dir, "/adapter");
    RETURN_IF_ERROR(MakeFolders(folder));
    RETURN_IF_ERROR(SaveAdapter(adapter, folder));
    if (HasTokenizer(checkpoint)) RETURN_IF_ERROR(CopyTokenizerFiles(checkpoint, folder));
    ASSIGN_OR_RETURN(*result.mutable_adapter_sha256(), Sha256HexOfFile(absl::StrCat(folder, "/", kAdapterWeightsFile)));
    ASSIGN_OR_RETURN(*result.add_artifacts(), UploadFolder(artifacts, folder, "adapter", v1::STAGE_EXPORT));
    (*result.mutable_outcomes()->mutable_counts())["adapter"] = 1;
  }
  if (!task.export_().merged().empty()) {
    tell(1, "merging");
    ASSIGN_OR_RETURN(const c10::ScalarType dtype, ParseDtype(task.export_().merged()));
    // Merged in f32, so that the result is rounded once; into what a quantised base stands for, on which the adapter
    // was trained.
    ASSIGN_OR_RETURN(ModelWeights weights, LoadWeights(task.student().model_name_or_path(), c10::ScalarType::Float,
                                                       c10::kCPU, QuantisationOf(task.student(), config)));
    if (HasQuantized(weights)) {
      spdlog::warn("merged_into_widened_base model={} reason=\"the base is quantised: rounding may differ a little\"",
                   task.student().model_name_or_path());
      WidenQuantized(weights, c10::ScalarType::Float);
    }
    RETURN_IF_ERROR(MergeAdapter(adapter, weights));
    const std::string folder = absl::StrCat(work_dir, "/merged");
    std::error_code error;
    std::filesystem::remove_all(folder, error);
    RETURN_IF_ERROR(SaveModelFolder(weights, dtype, task.student().model_name_or_path(), folder,
                                    TokenizerFolderOf(task.student().model_name_or_path(), checkpoint)));
    tell(1, "uploading the merged model");
    ASSIGN_OR_RETURN(*result.add_artifacts(), UploadFolder(artifacts, folder, "merged", v1::STAGE_EXPORT));
    (*result.mutable_outcomes()->mutable_counts())["merged"] = 1;
  }
  (*result.mutable_versions())["retort"] = std::string(kVersion);
  return result;
}

}  // namespace retort
