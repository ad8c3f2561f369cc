// A job file, read and checked.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cli/spec/binder.h"
#include "cli/spec/document.h"
#include "cli/spec/training_sample.h"
#include "retort/v1/job.pb.h"

namespace retort::cli {

struct JobFileOptions {
  std::string path;               // as the user gave it; names the file in messages
  std::vector<std::string> sets;  // arguments of --set, in their order
  std::string working_dir;        // absolute; output_dir is relative to it
  // Look at models and data on this machine: models must be there (the workers share its disk) and files must parse.
  bool check_models = true;
};

struct JobFile {
  v1::JobSpec
      spec;  // complete but for the uploaded files: all defaults, absolute paths, dataset formats and row counts
  Origins origins;
  TrainingText text;  // only where models are looked at
};

// Reads, overrides, checks and completes. Everything that is wrong is in `diagnostics`; the result counts only when
// that is empty.
JobFile LoadJobFile(const JobFileOptions& options, Diagnostics* diagnostics);

// The same without touching the disk: `text` is the file's contents and paths stay as written.
BoundSpec ParseJobSpec(absl::string_view text, const std::string& source, const std::vector<std::string>& sets,
                       Diagnostics* diagnostics);

}  // namespace retort::cli
