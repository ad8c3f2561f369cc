#include "student/export_task.h"

#include <spdlog/spdlog.h>

#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/status.h"
#include "common/version.h"
#include "model/config.h"
#include "model/convert/convert.h"
#include "model/gguf/mixture.h"
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
  if (name == "f16") return c10::ScalarType::Half;
  if (name == "f32") return c10::ScalarType::Float;
  return absl::InvalidArgumentError(absl::StrCat("export.merged: \"", name, "\" is none of bf16, f16 and f32"));
}

absl::StatusOr<gguf::FileType> ParseFileType(const std::string& name) {
  for (const gguf::NamedFileType& row : gguf::kFileTypes) {
    if (name == row.name) return row.type;
  }
  return absl::InvalidArgumentError(absl::StrCat("export.gguf: \"", name, "\" is no type of a GGUF file"));
}

// One artifact after the other, in the task's work folder.
class Export {
 public:
  explicit Export(TaskContext& context)
      : context_(context), task_(context.task().export_()), artifacts_(context.channel()) {}

  absl::StatusOr<v1::TaskResult> Run();

 private:
  std::string Folder(const std::string& name) const { return absl::StrCat(context_.flags().work_dir, "/", name); }
  void Tell(const std::string& message);
  absl::Status Publish(const std::string& name);
  absl::Status MakeAdapter(const LoraAdapter& adapter);
  absl::Status MakeMerged(const LoraAdapter& adapter);
  absl::Status MakeGguf();

  TaskContext& context_;
  const v1::ExportTask& task_;
  ArtifactClient artifacts_;
  std::string checkpoint_;  // folder
  ModelConfig config_;      // of the base
  v1::TaskResult result_;
};

void Export::Tell(const std::string& message) {
  const v1::ExportSpec& spec = task_.export_();
  v1::Progress progress;
  progress.set_done(result_.artifacts_size());
  progress.set_total((spec.adapter() ? 1 : 0) + (spec.merged().empty() ? 0 : 1) + (spec.gguf().empty() ? 0 : 1));
  progress.set_unit("folders");
  progress.set_message(message);
  context_.ReportProgress(progress);
}

absl::Status Export::Publish(const std::string& name) {
  ASSIGN_OR_RETURN(*result_.add_artifacts(), UploadFolder(artifacts_, Folder(name), name, v1::STAGE_EXPORT));
  (*result_.mutable_outcomes()->mutable_counts())[name] = 1;
  return absl::OkStatus();
}

absl::Status Export::MakeAdapter(const LoraAdapter& adapter) {
  const std::string folder = Folder("adapter");
  RETURN_IF_ERROR(MakeFolders(folder));
  RETURN_IF_ERROR(SaveAdapter(adapter, folder));
  if (HasTokenizer(checkpoint_)) RETURN_IF_ERROR(CopyTokenizerFiles(checkpoint_, folder));
  ASSIGN_OR_RETURN(*result_.mutable_adapter_sha256(), Sha256HexOfFile(absl::StrCat(folder, "/", kAdapterWeightsFile)));
  return Publish("adapter");
}

absl::Status Export::MakeMerged(const LoraAdapter& adapter) {
  Tell("merging");
  const std::string& base = task_.student().model_name_or_path();
  c10::ScalarType dtype = config_.dtype;
  if (!task_.export_().merged().empty()) {
    ASSIGN_OR_RETURN(dtype, ParseDtype(task_.export_().merged()));
  }
  // Into what a quantised base stands for, on which the adapter was trained.
  ASSIGN_OR_RETURN(ModelWeights weights,
                   LoadWeights(base, std::nullopt, c10::kCPU, QuantisationOf(task_.student(), config_)));
  if (HasQuantized(weights)) {
    spdlog::warn("merged_into_widened_base model={} reason=\"the base is quantised: rounding may differ a little\"",
                 base);
    WidenQuantized(weights, c10::ScalarType::Float);
  }
  RETURN_IF_ERROR(MergeAdapter(adapter, weights, dtype));
  std::error_code error;
  std::filesystem::remove_all(Folder("merged"), error);
  return SaveModelFolder(weights, dtype, base, Folder("merged"), TokenizerFolderOf(base, checkpoint_));
}

// Of the merged folder as it is: what `distctl convert` would make of it.
absl::Status Export::MakeGguf() {
  Tell("converting to GGUF");
  const std::string& type = task_.export_().gguf();
  ASSIGN_OR_RETURN(const gguf::FileType file_type, ParseFileType(type));
  RETURN_IF_ERROR(MakeFolders(Folder("gguf")));
  std::vector<std::string> warnings;
  RETURN_IF_ERROR(ConvertToGguf(Folder("merged"), absl::StrCat(Folder("gguf"), "/model-", type, ".gguf"), file_type,
                                {.overwrite = true, .warnings = &warnings}));
  for (const std::string& warning : warnings) spdlog::warn("gguf_export warning=\"{}\"", warning);
  return Publish("gguf");
}

absl::StatusOr<v1::TaskResult> Export::Run() {
  const v1::ExportSpec& spec = task_.export_();
  Tell("fetching the final checkpoint");
  ASSIGN_OR_RETURN(checkpoint_, FetchCheckpoint(artifacts_, task_.final_checkpoint(), context_.flags().work_dir));
  RETURN_IF_ERROR(LoadCheckpoint(checkpoint_).status());
  ASSIGN_OR_RETURN(config_, LoadModelConfig(task_.student().model_name_or_path()));
  ASSIGN_OR_RETURN(const LoraAdapter adapter, LoadAdapter(checkpoint_, config_));
  if (spec.adapter()) RETURN_IF_ERROR(MakeAdapter(adapter));
  if (!spec.merged().empty() || !spec.gguf().empty()) RETURN_IF_ERROR(MakeMerged(adapter));
  if (!spec.merged().empty()) {
    Tell("uploading the merged model");
    RETURN_IF_ERROR(Publish("merged"));
  }
  if (!spec.gguf().empty()) RETURN_IF_ERROR(MakeGguf());
  (*result_.mutable_versions())["retort"] = std::string(kVersion);
  return std::move(result_);
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

absl::StatusOr<v1::TaskResult> RunExportTask(TaskContext& context) { return Export(context).Run(); }

}  // namespace retort
