// From a task's spec to something that can train: rows, weights, adapter, the checkpoint to go on from.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/rpc/artifact_client.h"
#include "common/rpc/task_client.h"
#include "model/lora.h"
#include "model/tokenizer.h"
#include "student/checkpoint.h"
#include "student/trainer.h"

namespace retort {

struct TrainingSetup {
  c10::Device device = c10::kCPU;
  std::unique_ptr<Trainer> trainer;
  DatasetCounts train_counts;
  DatasetCounts validation_counts;
  std::string start_adapter_sha256;  // of the weights that adapter_name_or_path names; empty: a new adapter
  // Name -> contents: what goes beside the adapter, where its tokenizer is not the base's.
  std::map<std::string, std::string> tokenizer_files;
};

// Tells what is going on.
using TellFunction = std::function<void(const std::string& message)>;

// Loads everything for `task`. The trainer stands at the checkpoint's step, or at 0. Errors: kNotFound,
// kInvalidArgument, kFailedPrecondition, kUnimplemented (what the user has to mend; says where), kDataLoss (a damaged
// checkpoint), kResourceExhausted (memory, disk), kUnavailable (the artifact store).
absl::StatusOr<TrainingSetup> PrepareTraining(const v1::TrainTask& task, const TaskFlags& flags,
                                              ArtifactClient& artifacts, const TellFunction& tell);

// How the base is kept: as load_in_4bit and load_in_8bit say, or as its folder has it where that is quantised already.
BaseQuantisation QuantisationOf(const v1::StudentSpec& student, const ModelConfig& config);

// The adapter that training starts from: the given folder's, or a new one, for the model that `weights` are. A new one
// trains the embeddings where tokens were added.
absl::StatusOr<LoraAdapter> InitialAdapter(const v1::StudentSpec& student, const ModelWeights& weights,
                                           const TokenAdditions& additions = {});

// A copy of the trainer's state, on the CPU.
Snapshot TakeSnapshot(const TrainingSetup& setup, const std::string& manifest_sha256);

// Writes the files of a tokenizer into an existing folder.
absl::Status WriteTokenizerFiles(const std::map<std::string, std::string>& files, const std::string& folder);

// Downloads a checkpoint's folder below `work_dir` and returns where it is. Errors: as ArtifactClient::GetFolder.
absl::StatusOr<std::string> FetchCheckpoint(ArtifactClient& artifacts, const v1::Checkpoint& checkpoint,
                                            const std::string& work_dir);

}  // namespace retort
