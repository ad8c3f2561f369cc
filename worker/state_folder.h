// The daemon's folder: who it is, and that it is the only one.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "common/file.h"

namespace retort::worker {

// Holds the folder's lock as long as it lives.
struct StateFolder {
  std::string path;       // absolute
  std::string worker_id;  // kept in <path>/worker_id
  UniqueFd lock;

  std::string tasks_folder() const { return path + "/tasks"; }
  std::string cache_folder() const { return path + "/cache"; }
};

// Makes the folder (mode 0700) with what belongs into it, takes its lock, reads or makes the worker's id.
// Errors: kAlreadyExists (another daemon has it), kPermissionDenied, kResourceExhausted, kInvalidArgument (a damaged id
// file), kInternal.
absl::StatusOr<StateFolder> OpenStateFolder(const std::string& path);

}  // namespace retort::worker
