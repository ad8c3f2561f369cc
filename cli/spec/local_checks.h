// What a job file names on this machine: data files and model folders.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/spec/binder.h"
#include "cli/spec/document.h"
#include "retort/v1/job.pb.h"

namespace retort::cli {

// Reads every prompt and dataset file: rows parse and have their fields ("data/math.jsonl:7: answer: missing"). Fills
// the format and number of rows of datasets. Paths must be absolute.
void CheckDataFiles(const Origins& origins, v1::JobSpec* spec, Diagnostics* diagnostics);

// Looks into the folders of teacher, student and adapter: config.json, tokenizer.json (unless only rows of token ids
// are trained, whose format CheckDataFiles has filled in) and safetensors files with sound headers.
void CheckModelFolders(const Origins& origins, const v1::JobSpec& spec, Diagnostics* diagnostics);

// One tensor of a safetensors file.
struct TensorInfo {
  std::string name;
  std::string dtype;  // "F32", "BF16", ...
  std::vector<int64_t> shape;
  int64_t bytes = 0;
  std::string file;
  int64_t offset = 0;  // in the file
};

// The tensors that a safetensors file lists; checks that the header fits its file. Errors: kNotFound, kInvalidArgument
// (damaged).
absl::StatusOr<std::vector<TensorInfo>> ReadSafetensorsHeader(const std::string& path);

// Those of all *.safetensors files directly in `folder`. Errors: kNotFound (no folder, no such file), kInvalidArgument
// (damaged).
absl::StatusOr<std::vector<TensorInfo>> ReadModelTensors(const std::string& folder);

}  // namespace retort::cli
