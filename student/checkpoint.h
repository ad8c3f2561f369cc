// Checkpoints on disk: a PEFT adapter folder with what training needs to go on.
//
//   checkpoint-N/
//     adapter_config.json, adapter_model.safetensors   loads in PEFT
//     optimizer.safetensors                            "exp_avg.<parameter>", "exp_avg_sq.<parameter>"
//     trainer_state.json                               step, cursor, loss history, seed, versions
//     checksums.json                                   SHA-256 of each of the others
// A folder appears whole or not at all; loading verifies the hashes.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/lora.h"
#include "model/training_model.h"
#include "retort/v1/job.pb.h"
#include "student/epoch_plan.h"
#include "student/optimizer.h"

namespace retort {

inline constexpr char kAdapterWeightsFile[] = "adapter_model.safetensors";
inline constexpr char kAdapterConfigFile[] = "adapter_config.json";

// A state of training, copied: nothing in it changes while training goes on.
struct Snapshot {
  int64_t step = 0;
  int64_t total_steps = 0;
  Cursor cursor;
  double epoch = 0;
  uint64_t seed = 0;
  std::string manifest_sha256;
  LoraAdapter adapter;                     // on the CPU
  AdamWMoments moments;                    // on the CPU
  std::vector<ParameterSlice> parameters;  // the layout of the moments
  std::vector<v1::LossPoint> history;
  std::map<std::string, std::string> versions;
  std::map<std::string, std::string> tokenizer_files;  // name -> contents, beside the adapter; may be empty
};

// Writes `parent`/checkpoint-<step>, replacing one that is there, and returns its path. Errors: kResourceExhausted
// (disk full; nothing is left behind), kPermissionDenied, kInternal.
absl::StatusOr<std::string> WriteCheckpoint(const Snapshot& snapshot, const std::string& parent);

// What a checkpoint holds besides the adapter, which LoadAdapter reads.
struct LoadedCheckpoint {
  int64_t step = 0;
  std::string manifest_sha256;
  std::vector<v1::LossPoint> history;
  std::map<std::string, at::Tensor> optimizer;  // by name in optimizer.safetensors
};

// Errors: kDataLoss (a file is missing, changed, or not what WriteCheckpoint writes; names it).
absl::StatusOr<LoadedCheckpoint> LoadCheckpoint(const std::string& folder);

// The moments in the layout of `parameters`, on the CPU. Errors: kDataLoss (a tensor is missing or of another shape).
absl::StatusOr<AdamWMoments> AssembleMoments(const LoadedCheckpoint& checkpoint,
                                             const std::vector<ParameterSlice>& parameters);

}  // namespace retort
