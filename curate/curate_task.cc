#include <spdlog/spdlog.h>

#include <filesystem>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/file.h"
#include "common/rpc/artifact_client.h"
#include "common/rpc/sample_client.h"
#include "common/status.h"
#include "curate/curation.h"
#include "curate/tasks.h"

namespace retort::curate {
namespace {

constexpr int64_t kReportEvery = 256;  // traces

v1::DatasetSource Source(const std::string& name, const v1::BlobRef& file, size_t rows) {
  v1::DatasetSource source;
  source.set_path(absl::StrCat("dataset/", name, ".jsonl"));
  *source.mutable_file() = file;
  source.set_format(v1::DATASET_FORMAT_MESSAGES);
  source.set_split(name);
  source.set_weight(1.0);
  source.set_rows(static_cast<int64_t>(rows));
  return source;
}

}  // namespace

absl::StatusOr<v1::TaskResult> RunCurateTask(TaskContext& context, const v1::CurateTask& task) {
  SampleClient samples(context.channel(), context.ref());
  ArtifactClient artifacts(context.channel());
  const std::string& set_id = task.sample_set().sample_set_id();
  ASSIGN_OR_RETURN(const v1::SampleSetInfo info, samples.GetSampleSet(set_id));

  // An earlier attempt in the same folder may have left its files.
  const std::string folder = context.flags().work_dir + "/dataset";
  std::filesystem::remove_all(folder);
  RETURN_IF_ERROR(MakeFolders(folder));
  ASSIGN_OR_RETURN(const auto curation, Curation::Make(task.curate(), folder));
  v1::Progress progress;
  progress.set_unit("traces");
  progress.set_total(info.trace_count());
  RETURN_IF_ERROR(samples.ListTraces(set_id, [&](const v1::Prompt& prompt, const v1::Trace& trace) {
    progress.set_done(progress.done() + 1);
    if (progress.done() % kReportEvery == 0) context.ReportProgress(progress);
    return curation->Add(prompt, trace);
  }));
  context.ReportProgress(progress);
  ASSIGN_OR_RETURN(const CuratedDataset dataset, curation->Finish());

  v1::Manifest manifest;
  for (const v1::TraceKey& key : dataset.train) *manifest.add_keys() = key;
  for (const v1::TraceKey& key : dataset.validation) *manifest.add_keys() = key;
  manifest.set_train_count(static_cast<int64_t>(dataset.train.size()));
  manifest.set_validation_count(static_cast<int64_t>(dataset.validation.size()));
  ASSIGN_OR_RETURN(*manifest.mutable_train(), artifacts.PutFile(folder + "/train.jsonl"));
  ASSIGN_OR_RETURN(*manifest.mutable_validation(), artifacts.PutFile(folder + "/validation.jsonl"));

  v1::TaskResult result;
  v1::JobArtifact& artifact = *result.add_artifacts();
  artifact.set_name("dataset");
  artifact.set_stage(v1::STAGE_CURATE);
  artifact.set_size_bytes(manifest.train().size_bytes() + manifest.validation().size_bytes());
  ASSIGN_OR_RETURN(*artifact.mutable_artifact_id(), artifacts.PutFolder(folder));
  const auto manifest_sha256 = samples.CreateManifest(manifest);
  ExitIfFenced(context.ref(), manifest_sha256.status());
  if (!manifest_sha256.ok()) return manifest_sha256.status();
  result.set_manifest_sha256(*manifest_sha256);
  *result.add_dataset() = Source("train", manifest.train(), dataset.train.size());
  if (!dataset.validation.empty())
    *result.add_dataset() = Source("validation", manifest.validation(), dataset.validation.size());
  for (const auto& [cause, count] : dataset.outcomes) (*result.mutable_outcomes()->mutable_counts())[cause] = count;
  spdlog::info("curated sample_set={} train={} validation={} {}", set_id, dataset.train.size(),
               dataset.validation.size(), absl::StrJoin(dataset.outcomes, " ", absl::PairFormatter("=")));
  return result;
}

}  // namespace retort::curate
